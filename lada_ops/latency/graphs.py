"""Kernels alone: CUDA graphs of calls that rotate through copies of their operands.

A small kernel takes longer to launch than to run, and finds its operands in the L2 if it ran just
before. Neither is so in a model that is replayed as a graph.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch

from .clock import Calls

MIN_CALLS = 24  # in a graph: the gap between two replays is then a small share
MAX_COPIES = 512


def copies_for(bytes_per_call: int, l2_bytes: int) -> int:
    """How many copies of what a call touches leave nothing of the next one's in an L2 this large.

    Three times what the cache holds, since a cache need not forget the oldest first.
    """
    return min(MAX_COPIES, max(1, math.ceil(3 * l2_bytes / max(1, bytes_per_call))))


class Rotation:
    """`calls`, alike but on copies of their operands, to be made in turn; a `Candidate`'s run.

    Called, it makes the next one. Where `GraphClock` times it, a replay makes `count` of them, each
    as often as the others; `output` is then what the last one returned.
    """

    def __init__(self, calls: Sequence[Callable[[], Any]]) -> None:
        if not calls:
            raise ValueError("Rotation: calls is empty; expected one or more")
        self.calls = tuple(calls)
        self.count = len(self.calls) * math.ceil(MIN_CALLS / len(self.calls))
        self.output: Any = None
        self._next = itertools.cycle(self.calls)
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> Any:
        return next(self._next)()

    def replay(self) -> None:
        """Make `count` calls by a graph, captured the first time.

        What compiles or allocates at the first call must have been called before.
        """
        if self._graph is None:
            self._graph = self._captured()
        self._graph.replay()

    def _captured(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        # outputs rotate as the operands do: as many stay alive as there are copies
        alive: deque[Any] = deque(maxlen=len(self.calls))
        stream = torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph):
                for call in itertools.islice(itertools.cycle(self.calls), self.count):
                    alive.append(call())
        except Exception:
            torch.cuda.set_stream(stream)  # torch stays on its own where a capture fails
            raise
        self.output = alive[-1]
        return graph


class GraphClock:
    """CUDA events around replays of a `Rotation`, back to back; the time is one call's share.

    The L2 is cold if the rotation has as many copies as `copies_for` says.
    """

    name = "cuda graph replays, operands rotated through copies"
    min_sample_seconds = 1e-3

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._start = torch.cuda.Event(enable_timing=True)
        self._stop = torch.cuda.Event(enable_timing=True)

    def sample(self, calls: Calls, count: int) -> tuple[float, Any]:
        """Replays that make at least `count` calls. Raises TypeError where run is no `Rotation`."""
        rotation = next(calls)
        if not isinstance(rotation, Rotation):
            raise TypeError(f"GraphClock: run is {rotation!r}; expected a Rotation")
        replays = math.ceil(count / rotation.count)
        rotation.replay()  # captured, and uploaded to the device
        torch.cuda.synchronize(self._device)
        self._start.record(torch.cuda.current_stream(self._device))
        for _ in range(replays):
            rotation.replay()
        self._stop.record(torch.cuda.current_stream(self._device))
        torch.cuda.synchronize(self._device)
        milliseconds = self._start.elapsed_time(self._stop)
        return milliseconds / 1e3 / (replays * rotation.count), rotation.output
