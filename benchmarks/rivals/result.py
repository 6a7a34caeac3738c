"""Result files, one per model and number of threads, and their tables."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from benchmarks.markdown import table
from benchmarks.suite.rows import newest
from benchmarks.suite.store import Store
from lada_ops.host.environment import environment

from .contestants import CONTESTANTS, PRECISIONS, Contestant

ROOT = Path(__file__).parents[2]
SHAPES = ("1x16", "1x128", "8x128", "32x128")
PACKAGES = ("onnxruntime", "onnx", "onnxscript", "openvino")


class Results:
    """Rows of one model and number of threads, written to disk one by one.

    A row is a contestant on a shape. It is measured again in another environment; ours also after
    a change of our source.
    """

    def __init__(self, folder: Path, model: str, threads: int) -> None:
        self.path = folder / f"rivals_{model}_{threads}t.json"
        where = {**environment(), "torch_threads": threads, **_versions()}
        self._shared = {"model": model, "threads": threads}
        self._source = source()
        self._store = Store(self.path, where)

    def done(self, contestant: Contestant, shape: str) -> bool:
        """True if a time is there; for ours, one of the current source."""
        key = _key(contestant, shape)
        row = self._store.rows.get(key, {})
        fresh = not contestant.ours or row.get("source") == self._source
        return self._store.done(key) and fresh and "not_measured" not in row

    def put(self, contestant: Contestant, shape: str, row: Mapping[str, Any]) -> None:
        """Write a row of `benchmarks.rivals.race.race`."""
        told = {
            **self._shared,
            "contestant": contestant.name,
            "precision": contestant.precision,
            "method": contestant.method,
            "ratio": contestant.ratio,
            "shape": shape,
            **row,
        }
        if contestant.ours:
            told["source"] = self._source
        self._store.put(_key(contestant, shape), told)


def markdown(path: Path) -> str:
    """Markdown table of a result file: speed-ups over eager, contestants by shapes.

    Contestants that were not measured are listed below, with the reason.
    """
    header, rows = cells(path)
    notes = [f"Not measured: {', '.join(names)}: {why}" for why, names in missing(path).items()]
    return "\n".join([table(header, rows), *(f"{note}\n" for note in notes)])


def terminal(path: Path) -> Group:
    """Table of a result file for a terminal."""
    header, rows = cells(path)
    table = Table(
        title=f"{path.stem}: times as fast as eager",
        caption="cosine: of the worst row to eager fp32 with the same weights, over all shapes",
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for index, column in enumerate(header):
        table.add_column(column, justify="right" if index else "left", no_wrap=index == 0)
    for row in rows:
        table.add_row(*row)
    notes = (f"not measured: {', '.join(names)}: {why}" for why, names in missing(path).items())
    return Group(table, *(Text(note) for note in notes))


def cells(path: Path) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the newest environment: contestant, least cosine, speed-up per shape.

    A dash stands for a missing time, whose reason is in `missing`.
    """
    rows = _rows(path)
    shapes = sorted({row["shape"] for row in rows}, key=_size)
    lines = []
    for name in dict.fromkeys(row["contestant"] for row in rows):
        timed = {
            row["shape"]: row
            for row in rows
            if row["contestant"] == name and "not_measured" not in row
        }
        cosines = [row["cosine_min"] for row in timed.values()]
        ratios = [
            f"{timed[shape]['speedup_median']:.2f}" if shape in timed else "-" for shape in shapes
        ]
        lines.append([name, _cosine(min(cosines)) if cosines else "-", *ratios])
    return ["", "cosine", *shapes], lines


def lead(path: Path, method: str, ratio: float) -> dict[str, dict[str, float]]:
    """Speed-up of our engine over the best other runtime: precision -> shape -> ratio.

    All on the same weights; shapes without another runtime are left out.
    """
    fastest: dict[tuple[str, str], dict[bool, float]] = {}
    for row in _rows(path):
        if (row["method"], row["ratio"]) == (method, ratio) and "not_measured" not in row:
            ours = row["contestant"].startswith("lada engine")
            if ours or not row["contestant"].startswith("lada"):
                best = fastest.setdefault((row["precision"], row["shape"]), {})
                best[ours] = max(best.get(ours, 0.0), row["speedup_median"])
    found: dict[str, dict[str, float]] = {precision: {} for precision in PRECISIONS}
    for (precision, shape), best in fastest.items():
        if len(best) == 2:
            found[precision][shape] = best[True] / best[False]
    return {precision: shapes for precision, shapes in found.items() if shapes}


def missing(path: Path) -> dict[str, list[str]]:
    """Contestants that were not measured in the newest environment, by reason."""
    found: dict[str, list[str]] = {}
    for row in _rows(path):
        if "not_measured" in row:
            names = found.setdefault(row["not_measured"], [])
            if row["contestant"] not in names:
                names.append(row["contestant"])
    return found


def _rows(path: Path) -> list[dict[str, Any]]:
    """Rows of the newest environment, in the order of CONTESTANTS."""
    places = {contestant.name: place for place, contestant in enumerate(CONTESTANTS)}
    rows = newest(path)[1].values()
    return sorted(rows, key=lambda row: places.get(row["contestant"], len(places)))


def _cosine(value: float) -> str:
    # truncated, so that 1.0000 is printed only for equality up to the last digits of fp32
    return f"{int(value * 1e4 + 1e-3) / 1e4:.4f}"


def _size(shape: str) -> tuple[int, ...]:
    return tuple(int(size) for size in shape.split("x"))


def _key(contestant: Contestant, shape: str) -> str:
    return f"{contestant.name}, {shape}"


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def source() -> str:
    """Hash of our Python and C++ sources."""
    files = [
        path
        for folder in (ROOT / "lada_ops", ROOT / "kernels")
        for path in sorted(folder.rglob("*"))
        if path.suffix in (".py", ".cpp", ".h", ".hpp", ".inc")
    ]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]
