"""Pictures of the committed result files: ``python -m benchmarks.readme.plots``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from transformers import BertConfig

from benchmarks.markdown import machine, read_result
from benchmarks.readme.compression import ACCURACY, LEARNING, NAMES, SERVED
from benchmarks.readme.embeddings import DEMO
from benchmarks.readme.headline import BARS, BUCKET, DEVICE, HEADLINE
from benchmarks.readme.speed import LATENCY, RATIOS
from benchmarks.suite.ceilings import of_row
from lada_ops.compression.plan import METHODS
from lada_ops.latency.plots import plot_speedups
from lada_ops.machine_code.roofline import Work

RESULTS = Path(__file__).parents[1] / "results"
MODEL = "bert_base"
ACCURACY_BUCKET = "1x128"
_COMPRESSED = re.compile(rf"({'|'.join(METHODS)}) ([\d.]+)x")

Row = Mapping[str, Any]


def encoder_work(
    config: BertConfig, batch: int, length: int, ratio: float, dtype: torch.dtype
) -> Work:
    """Least work of an encoder whose linears are compressed to 1 / `ratio` of their size.

    Two operations per weight and token and those of attention's two products; weights read once,
    and each layer's hidden states read and written once.
    """
    layers, features = config.num_hidden_layers, config.hidden_size
    weights = layers * (4 * features**2 + 2 * features * config.intermediate_size) / ratio
    tokens = batch * length
    attention = layers * 4 * batch * length**2 * features
    moved = weights + layers * 2 * tokens * features
    return Work(round(2 * weights * tokens + attention), round(moved * dtype.itemsize))


def plot_headline(demo: Row, path: Path) -> None:
    """Bars of the README: speed-up of a few models at one batch x length, score beneath each."""
    figure, (axes,) = _figure(1, 1)
    comparison = next(c for c in demo["comparisons"] if c["label"] == BUCKET)
    scores = {row["name"]: row["spearman"] for row in demo["models"]}
    labels = [f"{label}\n\nSpearman {scores[name]:.3f}" for name, label in BARS.items()]
    speedups = [_timing(comparison, name, "speedup_median") for name in BARS]
    bars = axes.bar(labels, speedups, 0.6, color=["gray", *["C0"] * (len(BARS) - 1)])
    axes.bar_label(bars, fmt="%.1fx", fontsize=11, padding=2)
    axes.tick_params(axis="x", length=0, labelsize=9)
    axes.set_ylabel("times as fast as dense, eager")
    length = BUCKET.replace("x", " x ")
    title = f"{demo['model']}, batch x length {length}\n{machine(demo['environment'])}"
    axes.set_title(title, fontsize=10)
    axes.margins(y=0.1)
    figure.savefig(path)


def plot_latency(comparisons: Sequence[Row], ratio: float, path: Path) -> None:
    """Latency over batch x length: a line for each model but those compressed to other ratios."""
    figure, (axes,) = _figure(1, 1)
    names = dict.fromkeys(t["name"] for comparison in comparisons for t in comparison["timings"])
    for name in (name for name in names if _ratio(name) in (None, ratio)):
        seconds = [_timing(comparison, name, "median_seconds") for comparison in comparisons]
        points = [(i, 1e3 * s) for i, s in enumerate(seconds) if s is not None]
        ours = _COMPRESSED.fullmatch(name)
        style = {"marker": "o", "lw": 1.8} if ours else {"marker": ".", "lw": 1, "ls": "--"}
        axes.plot(*zip(*points, strict=True), label=name, **style)
    axes.set_yscale("log")
    axes.set_xticks(range(len(comparisons)), map(_bucket, comparisons))
    axes.set_xlabel("batch x length")
    axes.set_ylabel("latency, ms")
    _save_with_legend(figure, path)


def plot_ratios(comparisons: Sequence[Row], config: BertConfig, ceilings: Row, path: Path) -> None:
    """Speed-up over compression ratio, a panel for each batch x length, beside the roofline.

    The roofline is the dense latency over the least time for the work at the rates of `ceilings`,
    measured on the same machine by torch's matrix product and a copy. Packed weights may beat the
    first rate, and data that stays in a cache from call to call the second.
    """
    columns = min(4, len(comparisons))
    figure, panels = _figure(-(-len(comparisons) // columns), columns)
    for axes, comparison in zip(panels, comparisons, strict=False):
        batch, length = map(int, _bucket(comparison).split("x"))
        names = [timing["name"] for timing in comparison["timings"]]
        ratios = sorted({r for name in names if (r := _ratio(name)) is not None})
        for method in METHODS:
            speedups = [_timing(comparison, f"{method} {r:g}x", "speedup_median") for r in ratios]
            axes.plot(ratios, speedups, marker="o", label=method)
        dense_optimized = _timing(comparison, "dense, optimized", "speedup_median")
        axes.plot(1, dense_optimized, "k*", label="dense, optimized")
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
    _save_with_legend(figure, path)


def plot_accuracy(rows: Sequence[Row], bucket: str, path: Path) -> None:
    """The task's metric over speed-up: a line per method through its ratios, means over seeds."""
    figure, panels = _task_panels(rows)
    for axes, task, metric in panels:
        by_ratio: dict[tuple[str, float], list[tuple[float, float]]] = {}
        for row in sorted(task, key=lambda row: row["ratio"]):
            point = row["speedups"][bucket][SERVED], 100 * row["models"][1]["scores"][metric]
            by_ratio.setdefault((row["method"], row["ratio"]), []).append(point)
        for method in NAMES:
            points = [
                [mean(values) for values in zip(*seeds, strict=True)]
                for (name, _), seeds in by_ratio.items()
                if name == method
            ]
            _plot_method(axes, method, points)
        axes.set_xlabel(f"times as fast as dense, eager, {bucket}", fontsize=8)
    _save_with_legend(figure, path)


def plot_learning(rows: Sequence[Row], ratio: float, path: Path) -> None:
    """The task's metric over steps of training: a line per method at a ratio, first seed.

    No picture where no method was trained at that ratio.
    """
    trained = [row for row in rows if row["ratio"] == ratio and row["curve"]]
    if not trained:
        return
    figure, panels = _task_panels(trained)
    for axes, task, metric in panels:
        seed = min(row["seed"] for row in task)
        curves = {row["method"]: row["curve"] for row in task if row["seed"] == seed}
        for method in NAMES:
            points = [(point["step"], 100 * point[metric]) for point in curves.get(method, ())]
            _plot_method(axes, method, points)
        axes.set_xlabel(f"steps of {task[0]['batch']} texts, {ratio:g}x")
    _save_with_legend(figure, path)


def plot_device(folder: Path) -> None:
    """Pictures of one device, of the result files that are there."""
    from benchmarks.bench_bert import CONFIGS
    from benchmarks.shapes import PEER_RATIO

    if demo := read_result(folder / "demo.json"):
        title = f"{demo['model']} on {machine(demo['environment'])}"
        plot_speedups(demo, folder / DEMO, title)
        if folder.name == DEVICE:
            plot_headline(demo, folder / HEADLINE)
    if compression := read_result(folder / "compression.json"):
        plot_accuracy(compression["rows"], ACCURACY_BUCKET, folder / ACCURACY)
        plot_learning(compression["rows"], PEER_RATIO, folder / LEARNING)
    if bert := read_result(folder / "bert.json"):
        chosen = [c for c in bert["comparisons"] if c["label"].startswith(f"{MODEL} ")]
        plot_latency(chosen, PEER_RATIO, folder / LATENCY)
        plot_ratios(chosen, CONFIGS[MODEL], bert["ceilings"], folder / RATIOS)


def _figure(rows: int, columns: int) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure  # the figure alone: no window, no global state

    size = (7.0, 4.0) if rows * columns == 1 else (3.0 * columns + 1.5, 3.0 * rows)
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels


def _task_panels(rows: Sequence[Row]) -> tuple[Any, Iterator[tuple[Any, Sequence[Row], str]]]:
    """A figure, and for each task its axes, its rows and its metric, the teacher as a line."""
    tasks = dict.fromkeys(row["task"] for row in rows)
    figure, panels = _figure(1, len(tasks))

    def prepared() -> Iterator[tuple[Any, Sequence[Row], str]]:
        for axes, task in zip(panels, tasks, strict=True):
            of_task = [row for row in rows if row["task"] == task]
            metric, score = next(iter(of_task[0]["models"][0]["scores"].items()))
            axes.axhline(100 * score, color="gray", lw=0.7, label="teacher")
            axes.set_title(task, fontsize=9)
            axes.set_ylabel(f"{metric}, %")
            yield axes, of_task, metric

    return figure, prepared()


def _plot_method(axes: Any, method: str, points: Sequence[Sequence[float]]) -> None:
    """A line through `points`, in the method's colour, the same in every picture; none if empty."""
    if points:
        color = f"C{list(NAMES).index(method)}"
        label = NAMES[method].replace("`", "")
        axes.plot(*zip(*points, strict=True), marker="o", ms=4, label=label, color=color)


def _save_with_legend(figure: Any, path: Path) -> None:
    """Save with one legend for all panels, outside of them, where it covers no curve."""
    handles = {
        label: handle
        for axes in figure.axes
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    place = {"loc": "outside right center", "fontsize": 7, "frameon": False}
    figure.legend(handles.values(), handles.keys(), **place)
    figure.savefig(path)


def _bucket(comparison: Row) -> str:
    """Batch x length of a comparison whose label is a model and that."""
    return comparison["label"].split()[1]


def _ratio(name: str) -> float | None:
    """Compression ratio of a model of ours; None for any other model."""
    match = _COMPRESSED.fullmatch(name)
    return float(match[2]) if match else None


def _timing(comparison: Row, name: str, key: str) -> float | None:
    """A figure of one model in a comparison; None where it has no times."""
    return next((t[key] for t in comparison["timings"] if t["name"] == name), None)


if __name__ == "__main__":
    for folder in sorted(path for path in RESULTS.iterdir() if path.is_dir()):
        plot_device(folder)
