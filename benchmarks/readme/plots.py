"""Pictures of whole models from the committed result files.

``python -m benchmarks.readme.plots``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from transformers import BertConfig

from benchmarks.accuracy.methods import METHODS as COMPRESSION
from benchmarks.suite.ceilings import of_row
from lada_ops.compression.plan import METHODS
from lada_ops.machine_code.roofline import Work

RESULTS = Path(__file__).parents[1] / "results"
MODEL = "bert_base"
ACCURACY_BUCKET = "1x128"
LATENCY, RATIOS = f"{MODEL}_latency.png", f"{MODEL}_ratios.png"
ACCURACY, LEARNING = "compression.png", "learning.png"
"""The names of the pictures, beside the result files."""
_COMPRESSED = re.compile(rf"({'|'.join(METHODS)}) ([\d.]+)x")


def encoder_work(
    config: BertConfig, batch: int, length: int, ratio: float, dtype: torch.dtype
) -> Work:
    """What an encoder must do at least once its linears are 1 / `ratio` of their size.

    Two operations per weight and token and those of attention's two products; weights read once,
    and each layer's hidden states read and written once.
    """
    layers, features = config.num_hidden_layers, config.hidden_size
    weights = layers * (4 * features**2 + 2 * features * config.intermediate_size) / ratio
    tokens = batch * length
    attention = layers * 4 * batch * length**2 * features
    moved = weights + layers * 2 * tokens * features
    return Work(round(2 * weights * tokens + attention), round(moved * dtype.itemsize))


def plot_latency(comparisons: Sequence[Mapping[str, Any]], ratio: float, path: Path) -> None:
    """Latency over batch x length: a line for each model but those compressed to other ratios."""
    figure, axes = _figure(1, 1)
    labels = [_bucket(comparison) for comparison in comparisons]
    every = dict.fromkeys(t["name"] for comparison in comparisons for t in comparison["timings"])
    for name in (name for name in every if _ratio(name) in (None, ratio)):
        seconds = [_of(comparison, name, "median_seconds") for comparison in comparisons]
        places = [i for i, s in enumerate(seconds) if s is not None]
        own = _COMPRESSED.fullmatch(name)
        style = {"marker": "o", "lw": 1.8} if own else {"marker": ".", "lw": 1, "ls": "--"}
        axes[0].plot(places, [1e3 * (seconds[i] or 0) for i in places], label=name, **style)
    axes[0].set_yscale("log")
    axes[0].set_xticks(range(len(labels)), labels)
    axes[0].set_xlabel("batch x length")
    axes[0].set_ylabel("latency, ms")
    axes[0].legend(fontsize=7, frameon=False)
    figure.savefig(path)


def plot_ratios(
    comparisons: Sequence[Mapping[str, Any]],
    config: BertConfig,
    ceilings: Mapping[str, Any],
    path: Path,
) -> None:
    """Speed-up over compression ratio, a panel for each batch x length, beside the roofline.

    The roofline is what dense takes over the least time for the work at the rates of `ceilings`,
    measured on the same machine: those of torch's product and of a copy. What packs its weights
    may beat the one, and what stays in a cache from call to call the other.
    """
    columns = min(4, len(comparisons))
    figure, panels = _figure(-(-len(comparisons) // columns), columns)
    for axes, comparison in zip(panels, comparisons, strict=False):
        batch, length = map(int, _bucket(comparison).split("x"))
        names = [timing["name"] for timing in comparison["timings"]]
        ratios = sorted({r for name in names if (r := _ratio(name)) is not None})
        for method in METHODS:
            speedups = [_of(comparison, f"{method} {r:g}x", "speedup_median") for r in ratios]
            axes.plot(ratios, speedups, marker="o", label=method)
        axes.plot(1, _of(comparison, "dense, optimized", "speedup_median"), "k*", label="dense")
        dense = comparison["timings"][0]
        dtype = getattr(torch, dense["dtype"])
        least = [
            encoder_work(config, batch, length, r, dtype).seconds(of_row(dict(ceilings)))
            for r in (1, *ratios)
        ]
        bound = [dense["median_seconds"] / seconds for seconds in least]
        axes.plot((1, *ratios), bound, "k--", lw=1, label="roofline")
        axes.axhline(1, color="gray", lw=0.7)
        axes.set_title(f"{batch} x {length}", fontsize=9)
        axes.set_xlabel("compression ratio")
        axes.set_ylim(bottom=0)
    panels[0].set_ylabel("times as fast as dense, eager")
    panels[0].legend(fontsize=7, frameon=False)
    figure.savefig(path)


def plot_accuracy(rows: Sequence[Mapping[str, Any]], bucket: str, path: Path) -> None:
    """The task's metric over speed-up: a line per method through its ratios, means over seeds."""
    tasks = dict.fromkeys(row["task"] for row in rows)
    figure, panels = _figure(1, len(tasks))
    for axes, task in zip(panels, tasks, strict=True):
        of_task = sorted((r for r in rows if r["task"] == task), key=lambda row: row["ratio"])
        teacher = of_task[0]["models"][0]["scores"]
        metric = next(iter(teacher))
        for method in dict.fromkeys(row["method"] for row in of_task):
            by_ratio: dict[float, list[tuple[float, float]]] = {}
            for row in (row for row in of_task if row["method"] == method):
                speedup = row["speedups"][bucket]["optimized, float32"]
                score = 100 * row["models"][1]["scores"][metric]
                by_ratio.setdefault(row["ratio"], []).append((speedup, score))
            means = [[mean(values) for values in zip(*of, strict=True)] for of in by_ratio.values()]
            axes.plot(*zip(*means, strict=True), marker="o", label=method, color=_colour(method))
        axes.axhline(100 * teacher[metric], color="gray", lw=0.7)
        axes.set_title(f"{task}; the line is the teacher", fontsize=9)
        axes.set_xlabel(f"times as fast as dense, eager, {bucket}", fontsize=8)
        axes.set_ylabel(f"{metric}, %")
    panels[0].legend(fontsize=7, frameon=False)
    figure.savefig(path)


def plot_learning(rows: Sequence[Mapping[str, Any]], ratio: float, path: Path) -> None:
    """The task's metric over steps of training: a line per method at a ratio, first seed.

    No picture where nothing was trained at it.
    """
    trained = [row for row in rows if row["ratio"] == ratio and row["curve"]]
    if not trained:
        return
    tasks = dict.fromkeys(row["task"] for row in trained)
    figure, panels = _figure(1, len(tasks))
    for axes, task in zip(panels, tasks, strict=True):
        seed = min(row["seed"] for row in trained if row["task"] == task)
        of_task = [row for row in trained if (row["task"], row["seed"]) == (task, seed)]
        teacher = of_task[0]["models"][0]["scores"]
        metric = next(iter(teacher))
        for row in of_task:
            points = [(point["step"], 100 * point[metric]) for point in row["curve"]]
            method = row["method"]
            axes.plot(*zip(*points, strict=True), marker=".", label=method, color=_colour(method))
        axes.axhline(100 * teacher[metric], color="gray", lw=0.7)
        axes.set_title(f"{task}, {ratio:g}x; the line is the teacher", fontsize=9)
        axes.set_xlabel(f"steps, of {of_task[0]['batch']} texts each")
        axes.set_ylabel(f"{metric}, %")
    panels[0].legend(fontsize=7, frameon=False)
    figure.savefig(path)


def plot_device(folder: Path) -> None:
    """The pictures of one device, from its ``bert.json`` and ``compression.json``."""
    from benchmarks.bench_bert import CONFIGS
    from benchmarks.shapes import PEER_RATIO

    content = json.loads((folder / "bert.json").read_text())
    chosen = [c for c in content["comparisons"] if c["label"].startswith(f"{MODEL} ")]
    compression = folder / "compression.json"
    if compression.exists():
        rows = json.loads(compression.read_text())["rows"]
        plot_accuracy(rows, ACCURACY_BUCKET, folder / ACCURACY)
        plot_learning(rows, PEER_RATIO, folder / LEARNING)
    plot_latency(chosen, PEER_RATIO, folder / LATENCY)
    plot_ratios(chosen, CONFIGS[MODEL], content["ceilings"], folder / RATIOS)


def _figure(rows: int, columns: int) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure  # the figure alone: no window, no global state

    size = (7.0, 4.0) if rows * columns == 1 else (3.0 * columns, 3.0 * rows)
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels


def _colour(method: str) -> str:
    """The same in every picture."""
    return f"C{list(COMPRESSION).index(method)}"


def _bucket(comparison: Mapping[str, Any]) -> str:
    return comparison["label"].split()[1]


def _ratio(name: str) -> float | None:
    """Of a model of ours that is compressed."""
    found = _COMPRESSED.fullmatch(name)
    return float(found[2]) if found else None


def _of(comparison: Mapping[str, Any], name: str, key: str) -> float | None:
    return next((t[key] for t in comparison["timings"] if t["name"] == name), None)


if __name__ == "__main__":
    for found in sorted(RESULTS.glob("*/bert.json")):
        plot_device(found.parent)
