"""Markdown of the result files: tables, ratios, the machine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def measured(path: Path) -> dict[str, Any] | None:
    """What a result file holds, if there is one."""
    return json.loads(path.read_text()) if path.exists() else None


def machine(where: Mapping[str, Any], threads: bool = True) -> str:
    """What `environment()` found, as readers know it."""
    device = where["gpu"] or f"{where['cpu']} ({where['cpu_instruction_set']})"
    many = f", {where['torch_threads']} threads" if threads else ""
    return f"{device}{many}, torch {where['torch']}"


def speedup(ratio: float | None) -> str:
    """Two digits, bold if it is none, or a dash if it was not measured."""
    if ratio is None:
        return "-"
    return f"{ratio:.2f}" if ratio >= 1 else f"**{ratio:.2f}**"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (header, rule, *rows))
