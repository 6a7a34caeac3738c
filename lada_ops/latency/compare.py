"""Interleaved timing of candidates that were checked first."""

from __future__ import annotations

import gc
import itertools
import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from ..host.environment import environment
from ..host.progress import progress_bar
from .candidate import Candidate
from .clock import Clock, clock_for
from .result import Comparison, Quartiles, Timing

ORDER = "shuffled, then reversed in the next round"
SEED = 0


def compare(
    candidates: Sequence[Candidate],
    *,
    baseline: str,
    rounds: int = 15,
    warmup: int = 3,
    threads: int | None = None,
    label: str = "",
    clock: Clock | None = None,
    quiet: bool = False,
) -> Comparison:
    """Check every candidate's output, time all of them side by side, check again, and report.

    Each round takes one sample of each candidate, in an order that changes from round to round;
    ratios are taken within a round. All calls run under `torch.no_grad` (torch.sparse cannot
    multiply under `torch.inference_mode`; wrap run in it to time it), timed ones with garbage
    collection off.

    baseline: name of the candidate that speed-ups are over.
    rounds: samples per candidate. warmup: calls of each before the first round.
    threads: torch's intra-op CPU threads for all candidates, restored afterwards; None leaves them.
    label: what is compared, such as a shape; kept in the result and shown on the progress bar.
    clock: by default `CudaClock` for outputs on a CUDA device, else `CpuClock`.
    quiet: no progress bar; there is none either where stderr is no terminal.

    Raises WrongOutput, and then reports nothing, where an output is wrong before or after timing;
    ValueError or TypeError on bad arguments.
    """
    candidates = list(candidates)
    names = [candidate.name for candidate in candidates]
    _check_arguments(names, baseline, rounds, warmup, threads)
    progress = progress_bar(quiet)
    # redrawn by `advance` only: a refreshing thread would run beside what is timed
    progress.live.auto_refresh = False
    task = progress.add_task(label or "timing", total=len(candidates) + rounds)

    def advance() -> None:
        progress.advance(task)
        progress.refresh()

    with progress, _threads(threads), torch.no_grad():
        entrants = []
        for candidate in candidates:
            entrants.append(_Entrant(candidate))
            advance()
        clock = clock or clock_for(_one_device(entrants))
        with _garbage_collection_off():
            for entrant in entrants:
                entrant.warm_up(clock, warmup)
            for order in _orders(entrants, rounds):
                for entrant in order:
                    entrant.sample(clock)
                advance()
        for entrant in entrants:
            entrant.check(entrant.output)
        settings = {
            "rounds": rounds,
            "warmup": warmup,
            "threads": torch.get_num_threads(),
            "order": ORDER,
            "seed": SEED,
            "clock": clock.name,
            "min_sample_seconds": clock.min_sample_seconds,
        }
        where = environment()
    base = entrants[names.index(baseline)].seconds
    timings = tuple(entrant.timing(base) for entrant in entrants)
    return Comparison(label, baseline, timings, settings, where)


class _Entrant:
    """A candidate on its way through a comparison; made only if its outputs are right."""

    def __init__(self, candidate: Candidate) -> None:
        self.candidate = candidate
        self.output: Any = None
        self.seconds: list[float] = []
        self._expected = candidate.expect()
        self._error = 0.0
        self._calls = itertools.cycle(candidate.calls)
        self._count = 1
        for call in candidate.calls:
            self.output = call()
            self.check(self.output)

    def check(self, output: Any) -> None:
        """Raise WrongOutput unless `output` is right."""
        self._error = max(self._error, self.candidate.error(output, self._expected))

    def warm_up(self, clock: Clock, calls: int) -> None:
        """Make untimed calls, and find how many a sample takes to last long enough."""
        # the fastest, since a disturbed call would ask for too few
        fastest = min(clock.sample(self._calls, 1)[0] for _ in range(calls))
        self._count = _count(clock, fastest)
        if self._count > 1:
            warm, _ = clock.sample(self._calls, self._count)
            self._count = max(self._count, _count(clock, warm))

    def sample(self, clock: Clock) -> None:
        seconds, self.output = clock.sample(self._calls, self._count)
        self.seconds.append(seconds)

    def timing(self, baseline: list[float]) -> Timing:
        tensor = self.candidate.tensor(self.output)
        return Timing(
            name=self.candidate.name,
            seconds=Quartiles.of(self.seconds),
            min_seconds=min(self.seconds),
            speedup=Quartiles.of(b / s for b, s in zip(baseline, self.seconds, strict=True)),
            samples=len(self.seconds),
            calls_per_sample=self._count,
            copies=len(self.candidate.calls),
            dtype=str(tensor.dtype).removeprefix("torch."),
            error=self._error,
            tolerance=self.candidate.bound(tensor),
        )


def _check_arguments(
    names: list[str], baseline: str, rounds: int, warmup: int, threads: int | None
) -> None:
    if not names:
        raise ValueError("compare: candidates is empty; expected one or more")
    if len(set(names)) != len(names):
        raise ValueError(f"compare: candidates are named {names}; expected distinct names")
    if baseline not in names:
        raise ValueError(f"compare: baseline {baseline!r}; expected one of {names}")
    counts = {"rounds": rounds, "warmup": warmup, "threads": 1 if threads is None else threads}
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"compare: {name} is {count}; expected at least 1")


def _one_device(entrants: list[_Entrant]) -> torch.device:
    devices = {e.candidate.name: e.candidate.tensor(e.output).device for e in entrants}
    if len(set(devices.values())) > 1:
        raise ValueError(f"compare: outputs on {devices}; expected one device")
    return next(iter(devices.values()))


def _orders(entrants: list[_Entrant], rounds: int) -> Iterator[list[_Entrant]]:
    """Orders in which each precedes each other as often as it follows, over two rounds."""
    generator = random.Random(SEED)
    order = entrants
    for index in range(rounds):
        order = order[::-1] if index % 2 else generator.sample(entrants, len(entrants))
        yield order


def _count(clock: Clock, seconds: float) -> int:
    return max(1, math.ceil(clock.min_sample_seconds / max(seconds, 1e-9)))


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    try:
        if count is not None:
            torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _garbage_collection_off() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
