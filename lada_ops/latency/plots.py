"""Bar chart of the speed-ups of each model over the dense one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..host.extras import require


def plot_speedups(results: Mapping[str, Any], path: str | Path, title: str) -> None:
    """Draw grouped bars of the median speed-ups in `results` to an image file.

    results: as `lada_ops.latency.collect` gives them. Each comparison is a group of bars, one per
    model with its quartiles; the baseline is a line at 1.

    Raises ImportError where matplotlib is not installed.
    """
    require("a plot", "bench", "matplotlib")
    from matplotlib import colormaps
    from matplotlib.figure import Figure  # the figure alone: no window, no global state

    comparisons = results["comparisons"]
    baseline = comparisons[0]["baseline"]
    names = [t["name"] for t in comparisons[0]["timings"] if t["name"] != baseline]
    size = max(7.0, min(0.35 * len(names) * len(comparisons) + 3, 15.0))
    figure = Figure(figsize=(size, 4), dpi=150)
    axes = figure.add_subplot()
    width = 0.8 / len(names)
    for index, name in enumerate(names):
        timings = [_timing(comparison, name) for comparison in comparisons]
        medians = [t["speedup_median"] for t in timings]
        spread = [
            [t["speedup_median"] - t["speedup_q25"] for t in timings],
            [t["speedup_q75"] - t["speedup_median"] for t in timings],
        ]
        places = [group + width * (index - (len(names) - 1) / 2) for group in range(len(timings))]
        style = {"color": colormaps["tab20"](index), "error_kw": {"lw": 0.7}}
        bars = axes.bar(places, medians, width, yerr=spread, label=name, **style)
        axes.bar_label(bars, fmt="%.1f", fontsize=6, padding=2)
    axes.axhline(1, color="black", lw=1, label=f"{baseline} = 1")
    axes.set_xticks(range(len(comparisons)), [c["label"] for c in comparisons])
    axes.set_xlabel("batch x length")
    axes.set_ylabel(f"times as fast as {baseline}")
    axes.set_title(title, fontsize=10)
    axes.margins(y=0.1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, bbox_inches="tight")


def _timing(comparison: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    return next(t for t in comparison["timings"] if t["name"] == name)
