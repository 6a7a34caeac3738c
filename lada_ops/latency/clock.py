"""Clocks that time calls on the CPU and on CUDA."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch

Calls = Iterator[Callable[[], Any]]


class Clock(Protocol):
    """Clock of a comparison.

    name: kept in the result. min_sample_seconds: least duration of a sample that is timed well.
    """

    name: str
    min_sample_seconds: float

    def sample(self, calls: Calls, count: int) -> tuple[float, Any]:
        """Time the next `count` calls; return seconds per call and the output of the last call."""
        ...


class CpuClock:
    """Wall clock around consecutive calls, enough of them to last a millisecond."""

    name = "perf_counter"
    min_sample_seconds = 1e-3

    def sample(self, calls: Calls, count: int) -> tuple[float, Any]:
        output = None
        start = time.perf_counter()
        for _ in range(count):
            output = next(calls)()
        return (time.perf_counter() - start) / count, output


class CudaClock:
    """CUDA events around each call, from an idle device with a flushed L2.

    The time includes the launch overhead of the host; `GraphClock` times kernels alone. Calls are
    timed one by one, since a second call would find its weights in the L2.
    """

    name = "cuda events, idle device, L2 flushed"
    min_sample_seconds = 0.0

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # larger than the L2 of any device
        self._flush = torch.empty(256 * 2**20, dtype=torch.uint8, device=device)
        self._start = torch.cuda.Event(enable_timing=True)
        self._stop = torch.cuda.Event(enable_timing=True)

    def sample(self, calls: Calls, count: int) -> tuple[float, Any]:
        milliseconds, output = 0.0, None
        for _ in range(count):
            call = next(calls)
            self._flush.zero_()
            torch.cuda.synchronize(self._device)
            self._start.record(torch.cuda.current_stream(self._device))
            output = call()
            self._stop.record(torch.cuda.current_stream(self._device))
            torch.cuda.synchronize(self._device)
            milliseconds += self._start.elapsed_time(self._stop)
        return milliseconds / 1e3 / count, output


def clock_for(device: torch.device) -> Clock:
    """Clock for outputs on `device`."""
    return CudaClock(device) if device.type == "cuda" else CpuClock()
