"""Candidates with a known output, and a clock whose time the test sets."""

import itertools

import torch

from lada_ops.latency import Candidate

RIGHT = torch.arange(1.0, 13.0).reshape(3, 4)


class FakeClock:
    """Clock that advances only by `spend`; a sample without any takes a second per call."""

    name = "fake"

    def __init__(self, min_sample_seconds: float = 0.0) -> None:
        self.min_sample_seconds = min_sample_seconds
        self.now = 0.0
        self.samples = 0

    def spend(self, seconds: float) -> None:
        self.now += seconds

    def sample(self, calls, count):
        self.samples += 1
        start, output = self.now, None
        for _ in range(count):
            output = next(calls)()
        return (self.now - start) / count or 1.0, output


def candidate(name="a", output=RIGHT, **kwargs):
    return Candidate(name, kwargs.pop("run", lambda: output), RIGHT, **kwargs)


def right_for(calls: int, after: torch.Tensor):
    """Callable that gives the right output for the first `calls` calls, then `after`."""
    counter = itertools.count()
    return lambda: RIGHT.clone() if next(counter) < calls else after
