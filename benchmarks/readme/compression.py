"""Section on the accuracy that compression costs, from ``compression.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.markdown import machine, read_result, source, speedup, table

ACCURACY, LEARNING = "compression.png", "learning.png"
SERVED = "optimized, float32"
NAMES = {  # method in the file -> its name in tables and pictures
    "svd": "SVD, trained",
    "pruning": "pruning, trained",
    "hybrid": "SVD + pruning, trained",
    "lada": "`lada`: SVD + pruning, distilled",
    "lada-block": "`lada-block`, distilled",
    "calibration": "low rank, calibrated alone",
    "smaller-dense": "smaller dense, distilled",
}


def compression_section(folder: Path) -> str:
    """A table for each task that was measured, and pictures."""
    path = folder / "compression.json"
    content = read_result(path)
    if content is None:
        return ""
    rows = content["rows"]
    tasks = dict.fromkeys(row["task"] for row in rows)
    tables = "\n".join(_task_table([r for r in rows if r["task"] == task]) for task in tasks)
    return f"""### Accuracy by method of compression

MiniLM fine-tuned on a task, and its students by every method; rows that are not there are not \
measured yet. "Trained" is on the labels, "distilled" on the teacher's logits, attention scores \
and hidden states alone, both for as many epochs; "calibrated alone" is `lada_ops.compress`. Of \
the encoder's linears: non-zeros, which is what the ratio of SVD and pruning counts; MB with a \
mask of a bit per element; and stored MB, which is what the ratio of `lada-block` counts. Loyalty: \
share of predictions equal to the teacher's, right or wrong. Changed texts: accuracy on texts \
changed to fool another BERT. Speed in float32 on {machine(content["environment"])}. \
{source("python -m benchmarks.accuracy.table --data DATA --work build/compression", path)}

{tables}
{_lada_beside_lada_block(rows)}\
Metric by speed-up, a line per method through its ratios:

![Metric by speed-up]({folder.name}/{ACCURACY})

{_learning(folder)}"""


def _lada_beside_lada_block(rows: Sequence[Mapping[str, Any]]) -> str:
    """Paragraph on the speed of `lada-block` over `lada` by ratio, over tasks, seeds and sizes."""
    speedups = {(r["task"], r["seed"], r["ratio"], r["method"]): r["speedups"] for r in rows}
    by_ratio: dict[float, list[tuple[float, float]]] = {}
    for (task, seed, ratio, method), lada in speedups.items():
        lada_block = speedups.get((task, seed, ratio, "lada-block"))
        if method == "lada" and lada_block is not None:
            by_ratio.setdefault(ratio, []).extend(
                (
                    lada_block[size][SERVED] / times[SERVED],
                    lada_block[size][SERVED] / times["compressed"],
                )
                for size, times in lada.items()
            )
    if not by_ratio:
        return ""
    ranges = [
        f"at {ratio:g}x {_range([in_engine for in_engine, _ in pairs])} times in the same engine "
        f"and {_range([in_torch for _, in_torch in pairs])} times as torch runs `lada`"
        for ratio, pairs in sorted(by_ratio.items())
    ]
    return f"""The zeros of `lada` lie anywhere and are computed with, so beyond its rank they buy \
no time. `lada-block` is faster: {"; ".join(ranges)}.

"""


def _range(values: Sequence[float]) -> str:
    return f"{min(values):.1f} to {max(values):.1f}"


def _learning(folder: Path) -> str:
    path = folder / LEARNING
    if not path.exists():
        return ""
    return f"""Metric by steps of training; until its pruning is done, a student has more weights \
than in the end:

![Metric by steps of training]({folder.name}/{path.name})

"""


def _task_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The teacher and its students: a row per ratio and method, means over seeds."""
    teacher = rows[0]["models"][0]
    metric = next(iter(teacher["scores"]))
    attacked = "robustness" in teacher
    sizes = list(rows[0]["speedups"])
    header = [rows[0]["task"], metric, "loyalty", "non-zeros, M", "with mask, MB", "stored, MB"]
    header = [*header, "changed texts", *sizes] if attacked else [*header, *sizes]
    cells = [_cells("teacher", metric, [teacher], attacked) + ["1.00"] * len(sizes)]
    ratios = sorted({row["ratio"] for row in rows})
    for ratio, method in ((ratio, method) for ratio in ratios for method in NAMES):
        seeds = [r for r in rows if (r["ratio"], r["method"]) == (ratio, method)]
        if not seeds:
            continue
        name = f"{NAMES[method]}, {ratio:g}x"
        times = [mean(row["speedups"][size][SERVED] for row in seeds) for size in sizes]
        students = [row["models"][1] for row in seeds]
        cells.append(_cells(name, metric, students, attacked) + [speedup(t) for t in times])
    return table(header, cells)


def _cells(
    name: str, metric: str, models: Sequence[Mapping[str, Any]], attacked: bool
) -> list[str]:
    """Table cells of one method: means over seeds, the metric with its standard deviation."""
    scores = [100 * model["scores"][metric] for model in models]
    spread = f" ± {stdev(scores):.1f}" if len(scores) > 1 else ""
    linears = [model["linears"] for model in models]
    cells = [
        name,
        f"{mean(scores):.1f}{spread}",
        f"{100 * mean(model['label_loyalty'] for model in models):.1f}",
        f"{mean(cost['nonzeros'] for cost in linears) / 1e6:.2f}",
        f"{mean(cost['masked_bytes'] for cost in linears) / 1e6:.1f}",
        f"{mean(cost['stored_bytes'] for cost in linears) / 1e6:.1f}",
    ]
    if attacked:
        cells.append(f"{100 * mean(model['robustness']['after_attack'] for model in models):.1f}")
    return cells
