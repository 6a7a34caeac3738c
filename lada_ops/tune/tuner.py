"""The tuner: case by case, the best tiles of each way, then all ways and dense side by side."""

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
from .device import Bench
from .problem import Problem
from .search import Space, descend
from .variants import ways_of

if TYPE_CHECKING:
    from lada_kernels.table import Measured, Table
    from lada_kernels.variants import TileConfig, Variant


class _OutOfTime(Exception):
    """The budget is spent in the middle of a case."""


@dataclass
class Summary:
    """What a run did. measured: case -> way -> microseconds per call. failed: case -> reason.

    skipped: cases that the tables had. left: cases that the budget did not reach.
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
    """Measure what the tables in `folder` lack, and write each entry as soon as it is known.

    A way counts only if its output is right. Its tiles are searched from the default ones on, and
    what the machine-code gate finds fault with is not even run. The times of an entry, dense's
    among them, are medians of one interleaved run of CUDA-graph replays with a cold L2.

    folder: holds ``<stem>/<device>-triton<minor>.json``; made where it is not there.
    budget: seconds, after which no further tiles are tried; a case it cuts short is not written.
    bench: by default the current GPU. say: told in a line about every case.

    Raises NoGpu without a GPU that can be tuned for, or where it is lost, and
    `lada_kernels.table.TableError` on a damaged table. What is written by then is kept.
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
            ways = _measure(case, bench, deadline, say)
        except _OutOfTime:
            summary.left += 1
            continue
        except Exception as error:  # of many types, from Python, MLIR, ptxas and the driver
            bench.check_alive()
            summary.failed[str(case)] = reason = _in_a_line(error)
            say(f"{case}: failed: {reason}")
            continue
        table.add(case.key, case.tokens, ways, where)
        write_json(path, table.to_dict())
        times = {name: way.us for name, way in ways.items()}
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
    ways = [Variant("dense")]
    for name, space in ways_of(case).items():
        if space is None:
            ways.append(Variant(name))
            continue
        if bench.pdl:  # a replay is one launch after the other, as in a model
            space = replace(space, axes={**space.axes, "pdl": (False, True)})
        tiles, reasons = _best_tiles(problem, name, space, bench, deadline)
        if tiles is None:
            say(f"{case}: {name} does not run: {reasons[0]}")
        else:
            ways.append(Variant(name, tiles))
    if len(ways) == 1:
        raise RuntimeError("no way of ours runs")
    found = compare(
        [problem.candidate(way, bench.l2_bytes) for way in ways],
        baseline="dense",
        rounds=bench.rounds,
        clock=bench.clock,
        quiet=True,
    )
    return {
        way.name: Measured(round(1e6 * found[way.name].seconds.median, 3), way.tiles)
        for way in ways
    }


def _best_tiles(
    problem: Problem, name: str, space: Space, bench: Bench, deadline: float
) -> tuple[TileConfig | None, list[str]]:
    """The fastest tiles of a way, or None and why each that was tried does not do."""
    from lada_kernels.variants import Variant

    reasons: list[str] = []

    def seconds(tiles: TileConfig) -> float:
        if bench.now() >= deadline:
            raise _OutOfTime
        way = Variant(name, tiles)
        try:
            faults = bench.faults(problem.case, way)
            if not faults:
                return _seconds(problem, way, bench)
            reasons.append(faults[0])
        except Exception as error:
            bench.check_alive()
            reasons.append(_in_a_line(error))
        return math.inf

    return descend(space, seconds), reasons


@torch.no_grad()
def _seconds(problem: Problem, way: Variant, bench: Bench) -> float:
    """Roughly, to tell tiles apart: `compare` has the last word, on the best of each way."""
    candidate = problem.candidate(way, bench.l2_bytes)
    calls, expected = itertools.cycle(candidate.calls), candidate.expect()
    problem.poison()
    candidate.error(next(calls)(), expected)
    once, _ = bench.clock.sample(calls, 1)
    count = math.ceil(max(1.0, bench.clock.min_sample_seconds / once))
    samples = []
    for _ in range(max(1, bench.rounds // 3)):
        seconds, output = bench.clock.sample(calls, count)
        samples.append(seconds)
        candidate.error(output, expected)
    return statistics.median(samples)


def _in_a_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300]
