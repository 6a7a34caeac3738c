"""Tables of results for a terminal, made by rich."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.markup import escape
from rich.table import Table

SLOWER = "* slower than dense"
STAR = "*[/red]"
WEIGHT_ERROR = (
    "weight err.: |W - W'| / |W|; may be above 1, and right, where a layer is fitted to the "
    "calibration text and not to W"
)
OUTPUT_ERROR = "output err.: |Y - Y'| / |W X| of the layer's outputs Y on the calibration text"


def report(report: Mapping[str, Any]) -> Group:
    """Tables of a `CompressionReport.to_dict`: one of the layers, one of the totals."""
    table = _table("", ("layer", "becomes", "weight err.", "output err.", "ratio"))
    for name, layer in report["layers"].items():
        table.add_row(
            name,
            _format(layer["plan"]),
            _or_nothing(layer["weight_error"]),
            _or_nothing(layer["activation_error"]),
            _ratio(layer["dense"]["stored_bytes"], layer["compressed"]["stored_bytes"]),
        )
    explained = [
        text
        for key, text in (("weight_error", WEIGHT_ERROR), ("activation_error", OUTPUT_ERROR))
        if any(layer[key] is not None for layer in report["layers"].values())
    ]
    paths = Counter(report.get("cpu_paths", {}).values())
    if paths:
        lines = [f"{count} linears: {path}" for path, count in paths.items()]
        explained.append("On this CPU, after lada_ops.optimize: " + "; ".join(lines))
    _explain(table, *explained)
    columns = ("encoder's linears", "dense", "compressed", "ratio")
    sums = _table("", columns, "in the dtype that was compressed")
    for key, label in (
        ("stored_bytes", "stored, values and indices"),
        ("masked_bytes", "non-zeros and a bitmask"),
        ("parameters", "stored values"),
        ("nonzeros", "non-zeros"),
        ("flops_per_token", "FLOPs per token"),
    ):
        dense, compressed = report["dense"][key], report["compressed"][key]
        suffix = "MB" if key.endswith("bytes") else "M"
        sums.add_row(
            label,
            f"{dense / 1e6:.2f} {suffix}",
            f"{compressed / 1e6:.2f} {suffix}",
            _ratio(dense, compressed),
        )
    whole = report["model_bytes_dense"], report["model_bytes"]
    sums.add_row(
        "the whole model, stored",
        f"{whole[0] / 1e6:.2f} MB",
        f"{whole[1] / 1e6:.2f} MB",
        _ratio(*whole),
    )
    return Group(table, sums)


def _ratio(dense: float, compressed: float) -> str:
    """Dense over compressed; empty where the compressed count is 0."""
    return f"{dense / compressed:.2f}" if compressed else ""


def _or_nothing(error: float | None) -> str:
    return "" if error is None else f"{error:.3f}"


def _explain(table: Table, *lines: str) -> None:
    """Set the table's caption to `lines`, after the meaning of a star where the table has one."""
    starred = any(str(cell).endswith(STAR) for column in table.columns for cell in column.cells)
    table.caption = "\n".join([SLOWER, *lines] if starred else lines) or None


def _missing(*comparisons: Mapping[str, Any]) -> list[str]:
    """Lines with the models that have no times, one line for each reason."""
    models: dict[str, dict[str, None]] = {}
    for comparison in comparisons:
        for name, reason in comparison["missing"].items():
            models.setdefault(reason, {})[name] = None
    return [escape(f"missing: {'; '.join(names)}: {reason}") for reason, names in models.items()]


def latency(results: Mapping[str, Any]) -> Table:
    """Table of comparisons, given as by `lada_ops.latency.collect`."""
    baseline = results["comparisons"][0]["baseline"]
    columns = ("batch x length", "model", "ms", "25-75 %", f"times as fast as {baseline}")
    table = _table("", columns)
    for comparison in results["comparisons"]:
        for t in comparison["timings"]:
            low, mid, high = (1e3 * t[f"{q}_seconds"] for q in ("q25", "median", "q75"))
            table.add_row(
                comparison["label"],
                t["name"],
                f"{mid:.2f}",
                f"{low:.2f}-{high:.2f}",
                _speedup(t["speedup_median"]),
            )
    _explain(table, *_missing(*results["comparisons"]))
    return table


def traffic(results: Mapping[str, Any]) -> Group:
    """Tables of the results of `ServedModels.traffic` and `ServedModels.cold_starts`."""
    columns = ("texts", "model", "p50, ms", "p95", "p99", "texts/s", "times as fast as dense")
    table = _table("", columns)
    for load in results["traffic"]:
        for served in load["models"]:
            table.add_row(
                str(load["batch"]),
                served["name"],
                *(f"{1e3 * served[f'p{p}_seconds']:.2f}" for p in (50, 95, 99)),
                f"{served['sentences_per_second']:.0f}",
                _speedup(served["speedup"]),
            )
    _explain(table, *_missing(*results["traffic"]))
    seconds = ("imports", "load", "optimize", "first", "next")
    columns = ("a cold start, s", *seconds, "peak, MB", "of that the model's")
    starts = _table("", columns)
    for name, start in results["cold_starts"].items():
        sizes = (f"{start[size] / 1e6:.0f}" for size in ("peak_bytes", "model_bytes"))
        starts.add_row(name, *(f"{start[part]:.2f}" for part in seconds), *sizes)
    return Group(table, starts)


def tuning(results: Mapping[str, Any]) -> Table:
    """Table of a `Summary.to_dict` of `lada_ops.tune.tune`."""
    counts = f"{results['skipped']} known before, {results['left']} left, {len(results['failed'])}"
    done = f"{counts} failed; the tables are in {results['folder']}"
    failed = [f"failed: {case}: {reason}" for case, reason in results["failed"].items()]
    columns = ("linear", "fastest", "us", "dense, us", "times as fast as dense")
    table = _table("", columns)
    for case, times in results["measured"].items():
        fastest = min(times, key=times.__getitem__)
        table.add_row(
            case,
            fastest,
            f"{times[fastest]:.1f}",
            f"{times['dense']:.1f}",
            _speedup(times["dense"] / times[fastest]),
        )
    _explain(table, *map(escape, (done, *failed)))
    return table


def demo(results: Mapping[str, Any]) -> Table:
    """Table of the results of `lada_ops.demo.run_demo`."""
    labels = [comparison["label"] for comparison in results["comparisons"]]
    scored = results["models"][0]["spearman"] is not None
    columns = ["model", "linears", "whole", "cosine"]
    columns += ["Spearman"] if scored else []
    title = f"{results['model']}: MB, likeness to dense, times as fast by batch x length"
    table = _table(title, [*columns, *labels])
    for row in results["models"]:
        speedups = [
            _speedup(t["speedup_median"])
            for comparison in results["comparisons"]
            for t in comparison["timings"]
            if t["name"] == row["name"]
        ]
        score = [f"{row['spearman']:.3f}"] if scored else []
        table.add_row(
            row["name"],
            f"{row['linears_bytes'] / 1e6:.1f}",
            f"{row['model_bytes'] / 1e6:.1f}",
            f"{row['cosine_mean']:.3f}",
            *score,
            *speedups,
        )
    unscored = [] if scored else ["missing: Spearman: no scored pairs without --data"]
    _explain(table, *_missing(*results["comparisons"]), *unscored)
    return table


def evaluation(results: Mapping[str, Any]) -> Group:
    """Tables of the results of `lada eval`: size, then scores, then latency."""
    rows = results["models"]
    cost = _table("", ("model", "non-zeros, M", "masked", "stored", "whole", "MFLOPs"))
    cost.caption = (
        "Of the encoder's linears: non-zeros, what papers count; MB of them with a mask of a bit "
        "per element; MB stored in the file; MFLOPs a token. whole: MB of all the model."
    )
    for row in rows:
        linears = row["linears"]
        cost.add_row(
            row["name"],
            f"{linears['nonzeros'] / 1e6:.2f}",
            *(f"{linears[name] / 1e6:.2f}" for name in ("masked_bytes", "stored_bytes")),
            f"{row['model_bytes'] / 1e6:.1f}",
            f"{linears['flops_per_token'] / 1e6:.2f}",
        )
    loyalties = [name for name in ("label_loyalty", "probability_loyalty") if name in rows[0]]
    attacked = "robustness" in rows[0]
    columns = [results["task"], *rows[0]["scores"], *(name.split("_")[0] for name in loyalties)]
    quality = _table("", [*columns, "changed texts"] if attacked else columns)
    quality.caption = f"On {results['examples']} examples."
    if loyalties:
        quality.caption += " label and probability: loyalty to the teacher."
    if attacked:
        quality.caption += (
            f" changed texts: accuracy before and after {rows[0]['robustness']['texts']} were "
            "changed to fool another BERT."
        )
    for name, reason in results["missing"].items():
        quality.caption += escape(f"\nmissing: {name}: {reason}")
    for row in rows:
        cells = [f"{score:.4f}" for score in row["scores"].values()]
        cells += [f"{row[name]:.3f}" for name in loyalties]
        if attacked:
            before, after = (row["robustness"][f"{when}_attack"] for when in ("before", "after"))
            cells.append(f"{before:.3f} to {after:.3f}")
        quality.add_row(row["name"], *cells)
    return Group(cost, quality, latency(results))


def inspection(results: Mapping[str, Any]) -> Group:
    """Tables of the rows of `lada_ops.machine_code.inspection.inspect`."""
    figures = ("tile/warps", "reg.", "KiB", "occ.", "issue", "instr.", "least us")
    columns = ("tokens x in x out, weight, what follows", *figures)
    tables = []
    for kernel in dict.fromkeys(row["kernel"] for row in results["rows"]):
        table = _table(f"{kernel}, {results['target']}", columns)
        for row in results["rows"]:
            if row["kernel"] == kernel:
                table.add_row(*_inspected(row))
        tables.append(table)
    caption = (
        "reg.: registers a thread. KiB: shared memory a program. occ.: programs a multiprocessor.\n"
        "issue: cycles of issue over those of the tensor cores, in the K loop.\n"
        "instr.: instructions a thread issues per element of the output, behind the K loop.\n"
        "least us: an estimate, not a measurement: the whole op at the peak figures of\n"
        f"{results['gpu']}'s data sheet, {results['teraflops']} TFLOP/s and "
        f"{results['gigabytes_per_second']} GB/s."
    )
    faults = [
        f"[red]{row['kernel']} {row['weight']} {row['epilogue']}, "
        f"{row['tokens']} tokens: {fault}[/]"
        for row in results["rows"]
        for fault in row["faults"]
    ]
    return Group(*tables, caption, *(faults or ["No faults."]))


def _inspected(row: Mapping[str, Any]) -> list[str]:
    tiles, mark = row["tiles"], "[red]*[/red]" if row["faults"] else ""
    what = row["epilogue"] if row["gradient"] is None else f"gradient of {row['gradient']}"
    figures = ("registers", "shared_kib", "occupancy")
    ratios = ("issue_per_tensor", "instructions_per_element")
    return [
        f"{row['tokens']}x{row['k']}x{row['n']} {row['weight']} {what}{mark}",
        f"{tiles['BLOCK_M']}x{tiles['BLOCK_N']}/{tiles['num_warps']}",
        *("" if row[name] is None else f"{row[name]:.0f}" for name in figures),
        *("" if row[name] is None else f"{row[name]:.2f}" for name in ratios),
        f"{row['bound_us']:.1f}",
    ]


def _format(plan: Mapping[str, Any]) -> str:
    parts = [f"rank {plan['rank']}"] if "rank" in plan else []
    if "block" in plan:
        rows, cols = plan["block"]
        parts.append(f"{plan['density']:.1%} of {rows}x{cols}")
    return " + ".join(parts)


def _speedup(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio >= 1 else f"[red]{ratio:.2f}{STAR}"


def _table(title: str, columns: Sequence[str], caption: str = "") -> Table:
    table = Table(
        title=title or None,
        caption=caption or None,
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=index == 0)
    return table
