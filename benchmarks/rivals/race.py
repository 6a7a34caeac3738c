"""Races: contestants checked, timed in alternation, and checked again."""

from __future__ import annotations

import math
import random
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F

from lada_ops.latency import TOLERANCES, Candidate, Quartiles, WrongOutput

from .contestants import EAGER, Contestant
from .setup import NotMeasured

LEAST_COSINE = {"bf16": 0.99}
# relative error of the worst row; lower precisions are checked by cosine
TOLERANCE = {"fp32": TOLERANCES[torch.float32]}
Row = dict[str, Any]


class Runner(Protocol):
    """Interface of a `benchmarks.rivals.remote.Worker` that `race` uses."""

    def bind(self, inputs: Path) -> None: ...
    def time(self, calls: int, warm: int = 0) -> list[float]: ...
    def output(self) -> Any: ...


@dataclass(frozen=True)
class Rules:
    """rounds: samples per contestant. seconds: least duration of a sample, at least one call."""

    rounds: int = 7
    seconds: float = 0.5


@dataclass(eq=False)
class _Entrant:
    contestant: Contestant
    runner: Runner
    expected: Any
    calls: int = 1
    error: float = 0.0
    cosine: float = 1.0

    def check(self) -> None:
        error, cosine = likeness(self.contestant, self.runner.output(), self.expected)
        self.error, self.cosine = max(self.error, error), min(self.cosine, cosine)

    def warm_up(self, inputs: Path, seconds: float) -> None:
        self.runner.bind(inputs)
        self.runner.time(1)
        self.check()
        self.calls = max(1, math.ceil(seconds / self.runner.time(1)[0]))

    def sample(self) -> float:
        # one warm-up call, since others ran in between; none where a sample is a single call
        return statistics.median(self.runner.time(self.calls, warm=int(self.calls > 1)))


def race(
    runners: Mapping[Contestant, Runner],
    inputs: Path,
    expected: Callable[[Contestant], Any],
    rules: Rules,
) -> dict[Contestant, Row]:
    """Rows of all runners, timed against eager, which must be one of them.

    A round takes one sample per runner, the median over consecutive calls, in an order that changes
    between rounds. Ratios are taken within a round, so that a drift of the machine cancels.
    expected: expected output of a contestant.

    A row has times, ratios, error and cosine, or ``not_measured`` with the reason: a wrong output,
    or a process that died. Raises NotMeasured if eager is not measured.
    """
    out: dict[Contestant, Row] = {}
    entrants: list[_Entrant] = []
    times: dict[Contestant, list[float]] = {contestant: [] for contestant in runners}

    def attempt(entrant: _Entrant, action: Callable[[], None]) -> None:
        try:
            action()
        except (NotMeasured, WrongOutput) as error:
            if entrant.contestant is EAGER:
                raise NotMeasured(f"eager, which all are compared with: {error}") from error
            out[entrant.contestant] = {"not_measured": str(error)}
            entrants.remove(entrant)

    for contestant, runner in runners.items():
        entrant = _Entrant(contestant, runner, expected(contestant))
        entrants.append(entrant)
        attempt(entrant, lambda e=entrant: e.warm_up(inputs, rules.seconds))
    for order in orders([entrant.contestant for entrant in entrants], rules.rounds):
        for contestant in order:
            for entrant in [e for e in entrants if e.contestant is contestant]:
                attempt(entrant, lambda e=entrant: times[e.contestant].append(e.sample()))
    for entrant in list(entrants):
        attempt(entrant, entrant.check)
    for entrant in entrants:
        out[entrant.contestant] = _row(entrant, times[entrant.contestant], times[EAGER], rules)
    return out


def orders(names: Sequence[Any], rounds: int) -> Iterator[list[Any]]:
    """Orders of `names` per round: a random one, then its reverse, so that pairs are balanced."""
    generator = random.Random(0)
    order: list[Any] = []
    for index in range(rounds):
        order = order[::-1] if index % 2 else generator.sample(names, len(names))
        yield order


def likeness(contestant: Contestant, output: Any, expected: Any) -> tuple[float, float]:
    """Largest relative error of a row (a token's features), and smallest cosine.

    Raises WrongOutput on another shape, values that are not finite, or errors beyond the tolerance
    of the precision. int8 has no tolerance: its cosine is reported for the reader to judge.
    """
    tolerance = TOLERANCE.get(contestant.precision, sys.float_info.max)
    want = torch.from_numpy(expected).double()
    got = torch.from_numpy(output)
    candidate = Candidate(contestant.name, lambda: got, want, tolerance)
    error = candidate.error(got, want)
    cosine = float(F.cosine_similarity(got.double(), want, dim=-1).min())
    least = LEAST_COSINE.get(contestant.precision, -1.0)
    if cosine < least:
        reason = f"cosine of the worst row {cosine:.3f}, at least {least:g} expected"
        raise WrongOutput(contestant.name, reason, error, tolerance)
    return error, cosine


def _row(entrant: _Entrant, seconds: list[float], eager: list[float], rules: Rules) -> Row:
    ratios = [base / own for base, own in zip(eager, seconds, strict=True)]
    return {
        **Quartiles.of(seconds).to_dict("", "_seconds"),
        **Quartiles.of(ratios).to_dict("speedup_"),
        "samples": rules.rounds,
        "calls_per_sample": entrant.calls,
        "error": entrant.error,
        "cosine_min": entrant.cosine,
    }
