"""A clock for kernels alone: CUDA graphs of calls that rotate through copies of their operands.

A call as small as a kernel takes longer to launch than to run, and finds its operands in the L2 if
it ran just before. Neither is so in a model run from a graph, so neither may be in the figure.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch

MIN_CALLS = 24  # in a graph, for the gap between two replays to vanish
MAX_COPIES = 512
MIN_COPIES = 2


def copies_for(bytes_per_call: int, l2_bytes: int) -> int:
    """How many copies it takes for the next call of one to find nothing of it in the L2."""
    wanted = math.ceil(3 * l2_bytes / max(1, bytes_per_call))
    return min(MAX_COPIES, max(MIN_COPIES, wanted))


class Rotation:
    """`calls`, over copies of the same operands, made in turn: one by one, or as a CUDA graph.

    count: how many calls a replay makes. output: what the last one returned.
    """

    def __init__(self, calls: Sequence[Callable[[], Any]]) -> None:
        self._calls = calls
        self._next = itertools.cycle(calls)
        self._graph: torch.cuda.CUDAGraph | None = None
        self.count = len(calls) * math.ceil(MIN_CALLS / len(calls))
        self.output: Any = None

    @property
    def copies(self) -> int:
        return len(self._calls)

    @property
    def captured(self) -> bool:
        return self._graph is not None

    def __call__(self) -> Any:
        return next(self._next)()

    def capture(self) -> None:
        """Record one replay; whatever compiles at the first call must have been called."""
        graph = torch.cuda.CUDAGraph()
        # outputs rotate too: as many stay alive as there are copies
        alive: deque[Any] = deque(maxlen=len(self._calls))
        with torch.cuda.graph(graph):
            for _, call in zip(range(self.count), itertools.cycle(self._calls), strict=False):
                alive.append(call())
        self._graph, self.output = graph, alive[-1]

    def replay(self) -> None:
        if self._graph is not None:
            self._graph.replay()
            return
        for _ in range(self.count):
            self.output = self()


class GraphClock:
    """CUDA events around replays of `Rotation`s, back to back; the time is one call's share."""

    name = "cuda graph replays, operands rotated through copies"
    min_sample_seconds = 1e-3

    def __init__(self) -> None:
        self._start = torch.cuda.Event(enable_timing=True)
        self._stop = torch.cuda.Event(enable_timing=True)

    def sample(self, calls: Any, count: int) -> tuple[float, Any]:
        """Replays that make at least `count` calls; seconds per call, and the last output."""
        rotation = next(calls)
        if not isinstance(rotation, Rotation):
            raise TypeError(f"GraphClock: run is {rotation!r}; expected a Rotation")
        replays = math.ceil(count / rotation.count)
        torch.cuda.synchronize()
        self._start.record()
        for _ in range(replays):
            rotation.replay()
        self._stop.record()
        torch.cuda.synchronize()
        milliseconds = self._start.elapsed_time(self._stop)
        return milliseconds / 1e3 / (replays * rotation.count), rotation.output
