"""Interleaved timing of candidates, with their outputs checked before and after."""

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
    """Check the output of every candidate, time them side by side, and check again.

    Each round takes one sample of each candidate, in an order that changes from round to round;
    speed-ups are ratios within a round. All calls run under `torch.no_grad` (torch.sparse cannot
    multiply under `torch.inference_mode`; wrap run in it to time it), the timed ones with garbage
    collection off.

    baseline: name of the candidate that speed-ups are relative to.
    rounds: samples per candidate. warmup: calls of each before the first round.
    threads: torch's intra-op CPU threads for all candidates, restored afterwards; None keeps them.
    label: name of the comparison, such as a shape, for the result and the progress bar.
    clock: None for `CudaClock` where outputs are on a CUDA device, else `CpuClock`.
    quiet: no progress bar; there is none either where stderr is not a terminal.

    Raises WrongOutput, without a result, where an output is wrong before or after timing;
    ValueError or TypeError on bad arguments.
    """
    candidates = list(candidates)
    names = [candidate.name for candidate in candidates]
    _check_arguments(names, baseline, rounds, warmup, threads)
    progress = progress_bar(quiet)
    # redrawn by `advance` only: a refreshing thread would disturb the timing
    progress.live.auto_refresh = False
    task = progress.add_task(label or "timing", total=len(candidates) + rounds)

    def advance() -> None:
        progress.advance(task)
        progress.refresh()

    with progress, _threads(threads), torch.no_grad():
        samplers = []
        for candidate in candidates:
            samplers.append(_Sampler(candidate))
            advance()
        clock = clock or clock_for(_one_device(samplers))
        with _garbage_collection_off():
            for sampler in samplers:
                sampler.warm_up(clock, warmup)
            for order in _orders(samplers, rounds):
                for sampler in order:
                    sampler.sample(clock)
                advance()
        for sampler in samplers:
            sampler.check(sampler.output)
        settings = {
            "rounds": rounds,
            "warmup": warmup,
            "threads": torch.get_num_threads(),
            "order": ORDER,
            "seed": SEED,
            "clock": clock.name,
            "min_sample_seconds": clock.min_sample_seconds,
        }
        fingerprint = environment()
    base = samplers[names.index(baseline)].seconds
    timings = tuple(sampler.timing(base) for sampler in samplers)
    return Comparison(label, baseline, timings, settings, fingerprint)


class _Sampler:
    """Sampler of one candidate; the constructor checks the candidate's outputs."""

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
        """Raise WrongOutput unless `output` is within tolerance."""
        self._error = max(self._error, self.candidate.error(output, self._expected))

    def warm_up(self, clock: Clock, calls: int) -> None:
        """Make untimed calls, and set the calls per sample so that a sample lasts long enough."""
        # the fastest call: a disturbed one would give too few calls per sample
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


def _one_device(samplers: list[_Sampler]) -> torch.device:
    devices = {s.candidate.name: s.candidate.tensor(s.output).device for s in samplers}
    if len(set(devices.values())) > 1:
        raise ValueError(f"compare: outputs on {devices}; expected one device")
    return next(iter(devices.values()))


def _orders(samplers: list[_Sampler], rounds: int) -> Iterator[list[_Sampler]]:
    """Order of each round; in every two rounds each candidate precedes each other one once."""
    generator = random.Random(SEED)
    order = samplers
    for index in range(rounds):
        order = order[::-1] if index % 2 else generator.sample(samplers, len(samplers))
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
