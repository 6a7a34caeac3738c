"""Tuning: for each case, the best tiles of every variant, then all variants and dense compared."""

from __future__ import annotations

import itertools
import math
import os
import statistics
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..host.environment import environment
from ..host.files import write_json
from ..latency import compare
from .case import Case
from .device import Bench, reason
from .problem import Problem
from .search import Space, descend
from .variants import variants_of

if TYPE_CHECKING:
    from lada_kernels.table import Measured, Table
    from lada_kernels.variants import TileConfig, Variant


class _OutOfTime(Exception):
    """Raised when the budget ends in the middle of a case."""


@dataclass
class Summary:
    """Outcome of a run. measured: case -> variant -> microseconds per call. failed: case -> reason.

    skipped: number of cases already in the tables. left: number that the budget did not reach.
    """

    folder: str
    measured: dict[str, dict[str, float]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    skipped: int = 0
    left: int = 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def tune(
    cases: Iterable[Case],
    folder: str | os.PathLike[str],
    *,
    budget: float = math.inf,
    bench: Bench | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Summary:
    """Measure the cases missing in the tables of `folder`, and write each entry at once.

    Variants with wrong outputs are discarded. Tiles are searched from the default ones on; tiles
    with faults by the static gate are not run. All times of an entry, including dense, are medians
    of one interleaved run of CUDA-graph replays with a cold L2.

    folder: for ``<stem>/<device>-triton<minor>.json``, created if missing.
    budget: seconds after which no further tiles are tried; an unfinished case is not written.
    bench: by default the current GPU. say: called with a line of progress per case.

    Raises NoGpu where the GPU is missing, unsupported or lost, `lada_kernels.table.TableError` on a
    damaged table, and ValueError on a case that is not that of its bucket. Entries written before
    are kept.
    """
    bench = bench or Bench.of_gpu()
    deadline = bench.now() + budget
    summary, where = Summary(os.fspath(folder)), environment()
    tables: dict[str, tuple[Path, Table]] = {}
    for case in cases:
        if case.stem not in tables:
            tables[case.stem] = _open_table(Path(folder), case.stem, bench.name)
        path, table = tables[case.stem]
        if case.tokens in table.entries.get(case.key, {}):
            summary.skipped += 1
            continue
        if bench.now() >= deadline:
            summary.left += 1
            continue
        try:
            variants = _measure(case, bench, deadline, say)
        except _OutOfTime:
            summary.left += 1
            continue
        except Exception as error:  # of many types, from Python, MLIR, ptxas and the driver
            bench.check_alive()
            summary.failed[str(case)] = reason(error)
            say(f"{case}: failed: {reason(error)}")
            continue
        table.add(case.key, case.tokens, variants, where)
        write_json(path, table.to_dict())
        times = {name: measured.us for name, measured in variants.items()}
        summary.measured[str(case)] = times
        say(f"{case}: " + ", ".join(f"{name} {us:.1f} us" for name, us in times.items()))
    return summary


def _open_table(folder: Path, stem: str, device: str) -> tuple[Path, Table]:
    from lada_kernels.table import Table
    from lada_kernels.tuning import TRITON

    path = folder / stem / Table.name(device, TRITON)
    if path.exists():
        return path, Table.read(path, stem, device, TRITON)
    return path, Table(stem, device, TRITON)


def _measure(
    case: Case, bench: Bench, deadline: float, say: Callable[[str], None]
) -> dict[str, Measured]:
    from lada_kernels.table import Measured
    from lada_kernels.variants import Variant

    torch.manual_seed(0)
    problem = Problem.draw(case, bench.device)
    variants = [Variant("dense")]
    for name, space in variants_of(case).items():
        if space is None:
            variants.append(Variant(name))
            continue
        if bench.pdl:  # graph replays chain launches as a model does
            space = replace(space, axes={**space.axes, "pdl": (False, True)})
        tiles, reasons = _best_tiles(problem, name, space, bench, deadline)
        if tiles is None:
            say(f"{case}: {name} does not run: {reasons[0]}")
        else:
            variants.append(Variant(name, tiles))
    if len(variants) == 1:
        raise RuntimeError("no variant of ours runs")
    comparison = compare(
        [problem.candidate(variant, bench.l2_bytes) for variant in variants],
        baseline="dense",
        rounds=bench.rounds,
        clock=bench.clock,
        quiet=True,
    )
    return {
        variant.name: Measured(
            round(1e6 * comparison[variant.name].seconds.median, 3), variant.tiles
        )
        for variant in variants
    }


def _best_tiles(
    problem: Problem, name: str, space: Space, bench: Bench, deadline: float
) -> tuple[TileConfig | None, list[str]]:
    """Fastest tiles of a variant, or None and the reason for each that failed."""
    from lada_kernels.variants import Variant

    reasons: list[str] = []

    def seconds(tiles: TileConfig) -> float:
        if bench.now() >= deadline:
            raise _OutOfTime
        variant = Variant(name, tiles)
        try:
            faults = bench.faults(problem.case, variant)
            if not faults:
                return _seconds(problem, variant, bench)
            reasons.append(faults[0])
        except Exception as error:
            bench.check_alive()
            reasons.append(reason(error))
        return math.inf

    return descend(space, seconds), reasons


@torch.no_grad()
def _seconds(problem: Problem, variant: Variant, bench: Bench) -> float:
    """Rough time that ranks tiles; `compare` measures the best of each variant again."""
    candidate = problem.candidate(variant, bench.l2_bytes)
    calls, expected = itertools.cycle(candidate.calls), candidate.expect()
    bench.poison(problem.output_bytes)
    candidate.error(next(calls)(), expected)
    once, _ = bench.clock.sample(calls, 1)
    count = math.ceil(max(1.0, bench.clock.min_sample_seconds / once))
    samples = []
    for _ in range(max(1, bench.rounds // 3)):
        seconds, output = bench.clock.sample(calls, count)
        samples.append(seconds)
        candidate.error(output, expected)
    return statistics.median(samples)
