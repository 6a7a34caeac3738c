"""Heats: contestants of a model, a few at a time, eager in every heat."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path

from .contestants import EAGER, Contestant
from .race import Row, Rules, Runner, race
from .remote import Worker
from .result import Results
from .setup import NotMeasured, Setup
from .weights import Weights

Shape = tuple[int, int]


def run(
    contestants: Sequence[Contestant],
    shapes: Sequence[Shape],
    weights: Weights,
    results: Results,
    *,
    threads: int,
    rules: Rules,
    at_once: int,
    again: bool,
    exports: Path,
    say: Callable[[str], None],
) -> None:
    """Measure the rows missing in `results`, or all rows if `again`.

    at_once: concurrent processes beside eager. exports: folder for runtimes' exports of the
    weights. say: called with a line of progress.
    """
    lacking = {
        contestant: [
            shape for shape in shapes if again or not results.done(contestant, _label(shape))
        ]
        for contestant in contestants
    }
    # eager's own missing rows need no heat: it is measured in all of them
    rest = [c for c in contestants if c is not EAGER and lacking[c]]
    if not rest and not lacking[EAGER]:
        say(f"{results.path.name}: all there")
        return

    def start(contestant: Contestant) -> Worker:
        setup = Setup(
            contestant.build,
            str(weights.file(contestant)),
            str(exports / contestant.variant.replace(" ", "_")),
            threads,
            contestant.precision,
        )
        return Worker(setup)

    with start(EAGER) as eager:
        for heat in _heats(rest, at_once) or [[]]:
            with ExitStack() as stack:
                runners: dict[Contestant, Runner] = {EAGER: eager}
                for contestant in heat:
                    say(f"{results.path.stem}: {contestant.name} starts")
                    try:
                        runners[contestant] = stack.enter_context(start(contestant))
                    except NotMeasured as error:
                        row: Row = {"not_measured": str(error)}
                        for shape in lacking[contestant]:
                            results.put(contestant, _label(shape), row)
                for shape in shapes:
                    racing = {c: r for c, r in runners.items() if shape in lacking[c]}
                    if not racing:
                        continue
                    rows = race(
                        {EAGER: eager, **racing},
                        weights.inputs(shape),
                        lambda contestant, shape=shape: weights.expected(contestant, shape),
                        rules,
                    )
                    for contestant, row in rows.items():
                        results.put(contestant, _label(shape), row)
                        if shape in lacking[contestant]:
                            lacking[contestant].remove(shape)
                        say(f"{results.path.stem} {_label(shape)}: {_told(contestant, row)}")


def _heats(contestants: Sequence[Contestant], at_once: int) -> list[list[Contestant]]:
    """Heats of contestants with equal ratio and precision, since these will be compared."""

    def task(contestant: Contestant) -> tuple[float, str]:
        return contestant.ratio or 1, contestant.precision

    groups = [list(group) for _, group in groupby(sorted(contestants, key=task), task)]
    return [group[i : i + at_once] for group in groups for i in range(0, len(group), at_once)]


def _told(contestant: Contestant, row: Row) -> str:
    if "not_measured" in row:
        return f"{contestant.name}: not measured: {row['not_measured']}"
    return f"{contestant.name}: {row['speedup_median']:.2f}"


def _label(shape: Shape) -> str:
    return f"{shape[0]}x{shape[1]}"
