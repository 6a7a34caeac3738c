"""The README's section on what compression costs in accuracy, from ``compression.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.readme.plots import ACCURACY, LEARNING

NAMES = {  # of the methods of the table, as readers know them
    "svd": "SVD, trained",
    "pruning": "pruning, trained",
    "hybrid": "SVD + pruning, trained",
    "lada": "`lada`: SVD + pruning, distilled",
    "lada-block": "`lada-block`, distilled",
    "calibration": "low rank, calibrated alone",
    "smaller-dense": "smaller dense, distilled",
}


def compression_section(folder: Path, root: Path) -> str:
    """A table for each task that was measured, and a picture."""
    from benchmarks.markdown import machine, measured

    found = measured(folder / "compression.json")
    if found is None:
        return ""
    rows = found["rows"]
    tasks = dict.fromkeys(row["task"] for row in rows)
    tables = "\n".join(_task([r for r in rows if r["task"] == task]) for task in tasks)
    return f"""**What it costs in accuracy.** MiniLM fine-tuned on a task, and its students by \
every method; rows that are not there are not measured yet. "Trained" is on the labels, \
"distilled" on the teacher's answers, attention scores and hidden states alone, both for as many \
epochs. Of the encoder's linears: non-zeros, which is what the ratio of SVD and pruning counts; \
with a mask of a bit per element; and stored, which is what that of `lada-block` counts. Loyalty \
is the share of answers that are the teacher's, right or wrong. The last columns: times as fast as \
the teacher in eager mode, in float32, as `lada_ops.optimize` makes the model, on \
{machine(found["environment"])}.

{tables}
{_lada_beside_lada_block(rows)}![Accuracy by speed-up]({(folder / ACCURACY).relative_to(root)})

{_learning(folder, root)}"""


def _lada_beside_lada_block(rows: Sequence[Mapping[str, Any]]) -> str:
    """By how much `lada-block` is faster at the same ratio, over tasks, seeds and sizes."""
    served = "optimized, float32"
    kept = {(r["task"], r["seed"], r["ratio"], r["method"]): r["speedups"] for r in rows}
    pairs: dict[float, list[tuple[float, float]]] = {}
    for (*of, ratio, method), times in kept.items():
        blocks = kept.get((*of, ratio, "lada-block"))
        if method == "lada" and blocks is not None:
            pairs.setdefault(ratio, []).extend(
                (blocks[size][served] / t[served], blocks[size][served] / t["compressed"])
                for size, t in times.items()
            )
    if not pairs:
        return ""
    found = [
        f"at {ratio:g}x {_range([a for a, _ in both])} times in the same engine and "
        f"{_range([b for _, b in both])} times as torch runs `lada`"
        for ratio, both in sorted(pairs.items())
    ]
    return f"""`lada`'s zeros lie anywhere and are computed with, so beyond its rank they buy no \
time. `lada-block` is faster: {"; ".join(found)}.

"""


def _range(values: Sequence[float]) -> str:
    return f"{min(values):.1f} to {max(values):.1f}"


def _learning(folder: Path, root: Path) -> str:
    path = folder / LEARNING
    if not path.exists():
        return ""
    return f"""How soon they learn it; until its pruning is done, a student has more weights than \
in the end.

![Metric by steps of training]({path.relative_to(root)})

"""


def _task(rows: Sequence[Mapping[str, Any]]) -> str:
    from benchmarks.markdown import speedup, table

    teacher = rows[0]["models"][0]
    metric = next(iter(teacher["scores"]))
    attacked = "robustness" in teacher
    labels = list(rows[0]["speedups"])
    header = [rows[0]["task"], metric, "loyalty", "non-zeros, M", "with mask, MB", "stored, MB"]
    header = [*header, "changed texts", *labels] if attacked else [*header, *labels]
    cells = [_cells("teacher", metric, [teacher], attacked) + ["1.00"] * len(labels)]
    ratios = sorted({row["ratio"] for row in rows})
    for ratio, method in ((ratio, method) for ratio in ratios for method in NAMES):
        same = [r for r in rows if (r["ratio"], r["method"]) == (ratio, method)]
        if not same:
            continue
        name = f"{NAMES[method]}, {ratio:g}x"
        served = "optimized, float32"
        times = [mean(r["speedups"][label][served] for r in same) for label in labels]
        students = [r["models"][1] for r in same]
        cells.append(_cells(name, metric, students, attacked) + [speedup(t) for t in times])
    return table(header, cells)


def _cells(
    name: str, metric: str, models: Sequence[Mapping[str, Any]], attacked: bool
) -> list[str]:
    """Means over seeds, the metric with its spread."""
    scores = [100 * model["scores"][metric] for model in models]
    spread = f" ± {stdev(scores):.1f}" if len(scores) > 1 else ""
    linears = [model["linears"] for model in models]
    found = [
        name,
        f"{mean(scores):.1f}{spread}",
        f"{100 * mean(model['label_loyalty'] for model in models):.1f}",
        f"{mean(cost['nonzeros'] for cost in linears) / 1e6:.2f}",
        f"{mean(cost['masked_bytes'] for cost in linears) / 1e6:.1f}",
        f"{mean(cost['stored_bytes'] for cost in linears) / 1e6:.1f}",
    ]
    if attacked:
        found.append(f"{100 * mean(model['robustness']['after_attack'] for model in models):.1f}")
    return found
