"""Timing of kernels alone, by CUDA graphs of calls that rotate through copies of their operands.

A small kernel takes longer to launch than to run, and finds its operands in the L2 after a previous
call. Neither holds in a model that is replayed as a graph.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch

from .clock import Calls

MIN_CALLS = 24  # calls in a graph, so that the gap between two replays is a small share
MAX_COPIES = 512


def copies_for(bytes_per_call: int, l2_bytes: int) -> int:
    """Number of copies of a call's operands that keep the L2 cold for every call.

    Together they are three times the L2, since a cache need not evict the oldest lines first.
    """
    return min(MAX_COPIES, max(1, math.ceil(3 * l2_bytes / max(1, bytes_per_call))))


class Rotation:
    """Equal calls on copies of their operands, made in turn; serves as a `Candidate`'s run.

    A call of the rotation makes the next of `calls`. A replay (`GraphClock`) makes `count` calls,
    each of `calls` equally often, and sets `output` to the output of the last one.
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
        """Make `count` calls by a CUDA graph, captured at the first replay.

        Calls that compile or allocate when first made must have been made before.
        """
        if self._graph is None:
            self._graph = self._captured()
        self._graph.replay()

    def _captured(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        # as many outputs stay alive as there are copies, so that outputs rotate like operands
        alive: deque[Any] = deque(maxlen=len(self.calls))
        stream = torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph):
                for call in itertools.islice(itertools.cycle(self.calls), self.count):
                    alive.append(call())
        except BaseException:
            torch.cuda.set_stream(stream)  # a failed capture leaves torch on its own stream
            raise
        self.output = alive[-1]
        return graph


class GraphClock:
    """CUDA events around consecutive replays of a `Rotation`, divided by the number of calls.

    The L2 is cold if the rotation has `copies_for` copies.
    """

    name = "cuda graph replays, operands rotated through copies"
    min_sample_seconds = 1e-3

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._start = torch.cuda.Event(enable_timing=True)
        self._stop = torch.cuda.Event(enable_timing=True)

    def sample(self, calls: Calls, count: int) -> tuple[float, Any]:
        """Time replays of at least `count` calls. Raises TypeError where run is no `Rotation`."""
        rotation = next(calls)
        if not isinstance(rotation, Rotation):
            raise TypeError(f"GraphClock: run is {rotation!r}; expected a Rotation")
        replays = math.ceil(count / rotation.count)
        rotation.replay()  # captures, and uploads to the device
        torch.cuda.synchronize(self._device)
        self._start.record(torch.cuda.current_stream(self._device))
        for _ in range(replays):
            rotation.replay()
        self._stop.record(torch.cuda.current_stream(self._device))
        torch.cuda.synchronize(self._device)
        milliseconds = self._start.elapsed_time(self._stop)
        return milliseconds / 1e3 / (replays * rotation.count), rotation.output
