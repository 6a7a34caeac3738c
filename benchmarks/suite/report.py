"""Markdown report of result files: goals, checks, ceilings, a table per kernel."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.markdown import table

from .goals import GOALS, Rows
from .rows import Row, newest

PREFIX = "suite_"
OURS = ("one_launch", "two_launches", "weights_left", "split", "our op")
IMPLEMENTATIONS = (  # columns in order
    *("dense", "dense, GELU in cuBLAS", "two products", "four products", "autograd"),
    *("torch BSR", "2:4 CUTLASS", "2:4 cuSPARSELt", *OURS, "dispatch"),
)
STEPS = ("all", "operands", "compare")  # other names under which a failure is recorded
CHECKS = f"{PREFIX}checks"
CEILINGS = "ceilings"  # key of their row in CHECKS
REPORT = "SUITE.md"
LEGEND = """Microseconds are the median of interleaved rounds of CUDA graph replays, operands \
rotated through copies so that the L2 is cold; × is how many times as fast as dense, the median of \
ratios within a round. TFLOP/s, GB/s and the share of the roofline (of the ceilings measured here) \
are those of our fastest variant, for its own work: two operations per stored weight element and \
token, each operand read and the output written once. Every output was checked against fp64 \
before its time was taken. **Bold: slower than dense.** †: no CUDA graph can hold it; launched \
call by call, so the host's time may be in it. A dash: not measured for this row; \
"failed": see below the table.
"""


def write_reports(out: Path) -> list[Path]:
    """Write ``SUITE.md`` into every device folder of `out` with results of the suite."""
    written = []
    for folder in sorted({path.parent for path in out.glob(f"*/{PREFIX}*.json")}):
        path = folder / REPORT
        path.write_text(rendered(folder))
        written.append(path)
    return written


def rendered(folder: Path) -> str:
    """Report of a device's folder, from the rows of each file's last environment."""
    files = {path.stem: newest(path) for path in sorted(folder.glob(f"{PREFIX}*.json"))}
    environment = list(files.values())[-1][0]
    rows: Rows = {
        name.removeprefix(PREFIX): found for name, (_, found) in files.items() if name != CHECKS
    }
    checked = files[CHECKS][1] if CHECKS in files else {}
    sections = [
        f"# {folder.name}: the kernels\n",
        dry_run_note(environment),
        environment_line(environment),
        "## Goals\n",
        goals_table(rows),
        "## Checks\n",
        checks_table(checked),
        ceilings_line(checked),
        *kernel_sections(rows),
    ]
    return "\n".join(section for section in sections if section)


def dry_run_note(environment: Mapping[str, Any]) -> str:
    if not environment.get("dry_run"):
        return ""
    return "**A dry run: tiny shapes in Triton's interpreter. No figure here means anything.**\n"


def environment_line(environment: Mapping[str, Any]) -> str:
    known = (f"{k} {v}" for k, v in environment.items() if v is not None)
    return f"{', '.join(known)}\n"


def goals_table(rows: Rows) -> str:
    lines = []
    for goal in GOALS:
        outcome, figures = goal.outcome(rows)
        values = [value for _, value in figures if value is not None]
        cell = f"{min(values):.2f} to {max(values):.2f}" if values else ""
        good = sum(value >= goal.target for value in values)
        lines.append([goal.name, f"{goal.target:g}", outcome, cell, f"{good} of {len(figures)}"])
    return table(
        ["goal", "target", "", "from the worst to the best row", "rows that meet it"], lines
    )


def checks_table(checked: Mapping[str, Row]) -> str:
    lines, failures = [], []
    for key, row in checked.items():
        if "ok" not in row:
            continue
        verdict = {True: "ok", False: "**failed**", None: "not run"}[row["ok"]]
        counts = ", ".join(f"{row[k]} {k}" for k in ("passed", "failed", "skipped") if k in row)
        lines.append([key, verdict, counts, row.get("reason", "")])
        failures += [f"- {name}: {text}" for name, text in row.get("failures", {}).items()]
    if not lines:
        return "Not run.\n"
    below = "".join(f"{line}\n" for line in failures)
    return table(["test", "", "", "reason"], lines) + (f"\n{below}" if below else "")


def ceilings_line(checked: Mapping[str, Row]) -> str:
    if CEILINGS not in checked:
        return ""
    return f"Ceilings, measured here: {ceilings_text(checked[CEILINGS])}.\n"


def ceilings_text(row: Row) -> str:
    return (
        f"{row['bytes_per_second'] / 1e9:.0f} GB/s, {row['flops_per_second'] / 1e12:.3g} TFLOP/s, "
        f"{1e6 * row['graph_node_seconds']:.2f} us per graph node, {row['l2_bytes'] >> 20} MiB L2"
    )


def kernel_sections(rows: Rows) -> list[str]:
    sections = []
    for stem, found in rows.items():
        for backward in (False, True):
            ordered = sorted(found.items(), key=lambda item: order(item[1]))
            chosen = {key: row for key, row in ordered if is_backward(row) == backward}
            if chosen:
                title = f"## {stem}{', training step' if backward else ''}\n"
                sections += [title, *([] if sections else [LEGEND]), kernel_table(chosen)]
    return sections


def order(row: Row) -> tuple[Any, ...]:
    """Sort key: shape, epilogue, weight, tokens; rows without a case come first."""
    case = row.get("case")
    if case is None:
        return ()
    shape = case["in_features"], case["hidden"], case["out_features"], case["epilogue"]
    return *shape, case["rank"], tuple(case["block"]), case["density"], case["tokens"]


def is_backward(row: Row) -> bool:
    return bool(row.get("case", {}).get("backward"))


def kernel_table(rows: Mapping[str, Row]) -> str:
    """Table with a line per row, a column per implementation, and the rates of our fastest."""
    present = {name for row in rows.values() for name in (*row.get("timings", {}), *row["failed"])}
    known = [name for name in IMPLEMENTATIONS if name in present]
    names = known + sorted(present - {*IMPLEMENTATIONS, *STEPS})
    lines, reasons = [], {}
    for key, row in rows.items():
        timings = row.get("timings", {})
        cells = [timing_cell(row, name) for name in names]
        lines.append([key, *cells, *achieved_cells(timings)])
        for name, why in row["failed"].items():
            reasons.setdefault((name, why), []).append(key)
    text = table(["", *names, "TFLOP/s", "GB/s", "roofline"], lines)
    if reasons:
        text += "\nFailed:\n\n" + "".join(
            f"- {name}, {len(keys)} rows such as {keys[0]}: {why}\n"
            for (name, why), keys in reasons.items()
        )
    return text


def timing_cell(row: Row, name: str) -> str:
    if name in row["failed"]:
        return "failed"
    timing = row.get("timings", {}).get(name)
    if timing is None:
        return "-"
    speedup = timing["speedup_median"]
    cell = f"{1e6 * timing['median_seconds']:.1f}{'†' if timing['launched'] else ''}"
    if name == "dense":
        return cell
    ratio = f"{speedup:.2f}×"
    return f"{cell} {ratio}" if speedup >= 1 else f"{cell} **{ratio}**"


def achieved_cells(timings: Mapping[str, Mapping[str, Any]]) -> list[str]:
    own = [timing for name, timing in timings.items() if is_ours(name)]
    if not own:
        return ["-", "-", "-"]
    best = min(own, key=lambda timing: timing["median_seconds"])
    share = best["roofline_fraction"]
    return [
        f"{best['tflops']:.1f}",
        f"{best['gigabytes_per_second']:.0f}",
        "-" if share is None else f"{100 * share:.0f} %",
    ]


def is_ours(name: str) -> bool:
    """True if an implementation runs our kernels alone; "dispatch" may be dense."""
    return name in OURS
