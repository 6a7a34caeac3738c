"""Result files, one JSON per kernel, written after every row so that a later run can resume.

A row belongs to its environment, which includes a hash of the kernels' source: under another
driver, Triton or source it is measured again and replaced.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lada_ops.host.environment import environment
from lada_ops.host.files import write_whole

from .rows import Row, read

KERNELS = Path(__file__).parents[2] / "kernels" / "lada_kernels"


class Store:
    """Rows of one file by key.

    rows: key -> measured figures or ``failed``, and ``environment``, an index into `environments`.
    Raises ValueError on any other file.
    """

    def __init__(self, path: Path, environment: Mapping[str, Any]) -> None:
        self.path = path
        self.environments: list[dict[str, Any]] = []
        self.rows: dict[str, Row] = {}
        if path.exists():
            self.environments, self.rows = read(path)
        if environment not in self.environments:
            self.environments.append(dict(environment))
        self.current = self.environments.index(dict(environment))
        # cached as text, since the file is rewritten after each of thousands of rows
        self._lines = {key: _line(key, row) for key, row in self.rows.items()}

    @property
    def _running(self) -> Path:
        return self.path.with_name(f".{self.path.name}.running")

    def done(self, key: str) -> bool:
        """True if a row was measured in this environment."""
        return key in self.rows and self.rows[key]["environment"] == self.current

    def begin(self, key: str) -> None:
        """Leave a note of the row being measured, which `interrupted` reads after a crash."""
        self._running.parent.mkdir(parents=True, exist_ok=True)
        self._running.write_text(key)

    def put(self, key: str, row: Mapping[str, Any]) -> None:
        self.rows[key] = {**row, "environment": self.current}
        self._lines[key] = _line(key, self.rows[key])
        environments = json.dumps(self.environments, allow_nan=False)
        rows = ",\n".join(self._lines.values())
        write_whole(self.path, f'{{"environments": {environments},\n"rows": {{\n{rows}\n}}}}\n')
        self._running.unlink(missing_ok=True)

    def interrupted(self) -> str | None:
        """Key of a row that was begun and never written; its note is removed."""
        if not self._running.exists():
            return None
        key = self._running.read_text()
        self._running.unlink()
        return key


def _line(key: str, row: Row) -> str:
    return f"{json.dumps(key)}: {json.dumps(row, allow_nan=False)}"


def suite_environment(dry_run: bool) -> dict[str, Any]:
    """Environment of a row: `environment`, and a hash of the kernels' source."""
    sources = sorted(KERNELS.rglob("*.py"))
    source = b"".join(path.read_bytes() for path in sources)
    found = {**environment(), "kernels": hashlib.sha256(source).hexdigest()[:12]}
    return {**found, "dry_run": True} if dry_run else found
