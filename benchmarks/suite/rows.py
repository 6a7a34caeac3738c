"""Result files of the suite: rows by key, and their environments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def read(path: Path) -> tuple[list[dict[str, Any]], dict[str, Row]]:
    """Environments and rows of a result file. Raises ValueError on any other file."""
    try:
        content = json.loads(path.read_text())
        return content["environments"], content["rows"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: {error!r}; expected a result file of the suite (move it away to start anew)"
        ) from error


def newest(path: Path) -> tuple[dict[str, Any], dict[str, Row]]:
    """Last environment of a result file, and the rows measured in it."""
    environments, rows = read(path)
    last = len(environments) - 1
    return environments[last], {k: r for k, r in rows.items() if r["environment"] == last}
