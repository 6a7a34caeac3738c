"""Markdown of the result files: tables, speed-ups, machine, source."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


def read_result(path: Path) -> dict[str, Any] | None:
    """Content of a result file, or None where there is none."""
    return json.loads(path.read_text()) if path.exists() else None


def machine(environment: Mapping[str, Any], threads: bool = True) -> str:
    """Device, threads and torch version of an `environment()`, in one phrase."""
    device = environment["gpu"] or f"{environment['cpu']} ({environment['cpu_instruction_set']})"
    count = f", {environment['torch_threads']} threads" if threads else ""
    return f"{device}{count}, torch {environment['torch']}"


def source(command: str, *paths: Path) -> str:
    """Sentence that names the command that measured a section, with links to its result files."""
    links = ", ".join(f"[{path.name}]({path.parent.name}/{path.name})" for path in paths)
    return f"Measured by `{command}`; figures: {links}."


def speedup(ratio: float | None) -> str:
    """Speed-up with two decimals, bold below 1, or a dash where it was not measured."""
    if ratio is None:
        return "-"
    return f"{ratio:.2f}" if ratio >= 1 else f"**{ratio:.2f}**"


def speedups(comparisons: Iterable[Mapping[str, Any]], name: str) -> list[str]:
    """Table cells of one model: its median speed-up in each comparison."""
    ratios = ({t["name"]: t["speedup_median"] for t in c["timings"]} for c in comparisons)
    return [speedup(of_model.get(name)) for of_model in ratios]


def missing(comparisons: Iterable[Mapping[str, Any]]) -> str:
    """Paragraph that names the models without times and the reasons; empty if all were timed."""
    reasons = {
        f"{name} ({reason})": None
        for comparison in comparisons
        for name, reason in comparison.get("missing", {}).items()
    }
    return f"Missing: {'; '.join(reasons)}.\n\n" if reasons else ""


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown table, its first column to the left and the others to the right."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (header, rule, *rows))


def details(summary: str, text: str) -> str:
    """Text that GitHub folds away under its summary."""
    return f"<details><summary>{summary}</summary>\n\n{text}\n</details>\n"
