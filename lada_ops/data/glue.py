"""The tasks of GLUE, and their files, read line by line and refused at the first that is wrong.

Files are UTF-8, tab-separated, with a header and without quoting: ``glue/TASK/train.tsv`` and
``dev.tsv`` in the folder that the user names, plain or with ``.gz`` after their names. That of
MNLI's dev set is ``dev_matched_1k.tsv``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .utf8 import read_utf8

Split = Literal["train", "dev"]


@dataclass(frozen=True)
class Task:
    """What is asked: columns of text, labels by id (none for scores of 0 to 5), and the metric.

    dev_file: the dev set's file.
    """

    name: str
    columns: tuple[str, ...]
    labels: tuple[str, ...]
    metric: str
    dev_file: str = "dev.tsv"

    @property
    def regression(self) -> bool:
        return not self.labels

    @property
    def num_labels(self) -> int:
        """The outputs that a model for it has."""
        return len(self.labels) or 1


_PAIR = ("sentence", "sentence2")
_ENTAILMENT = ("entailment", "not_entailment")
TASKS = {
    task.name: task
    for task in (
        Task("sst2", ("sentence",), ("negative", "positive"), "accuracy"),
        Task("cola", ("sentence",), ("unacceptable", "acceptable"), "matthews"),
        Task("mrpc", _PAIR, ("not_equivalent", "equivalent"), "f1"),
        Task("rte", _PAIR, _ENTAILMENT, "accuracy"),
        Task(
            "mnli",
            _PAIR,
            ("entailment", "neutral", "contradiction"),
            "accuracy",
            "dev_matched_1k.tsv",
        ),
        Task("stsb", _PAIR, (), "spearman"),
    )
}
LARGEST_SCORE = 5.0


@dataclass(frozen=True)
class Examples:
    """Texts, one or two each, and their labels: ids, or scores."""

    texts: Sequence[tuple[str, ...]]
    labels: Sequence[int] | Sequence[float]

    def __len__(self) -> int:
        return len(self.texts)


def find_task(name: str) -> Task:
    """The task of that name. Raises ValueError if there is none."""
    if name not in TASKS:
        raise ValueError(f"task {name!r}; expected one of {', '.join(TASKS)}")
    return TASKS[name]


def read_split(data: Path, task: Task, split: Split, file: str | None = None) -> Examples:
    """The examples of a split in the folder `data`, or of another `file` beside its own.

    Raises FileNotFoundError where there is no such file, ValueError with file and line where one is
    malformed.
    """
    name = file or (task.dev_file if split == "dev" else "train.tsv")
    return read_examples(found(data / "glue" / task.name / name), task)


def read_examples(path: Path, task: Task) -> Examples:
    """The examples of a file of the task.

    Raises ValueError with file and line where it is malformed, OSError where it cannot be read.
    """
    rows = read_table(path, (*task.columns, "label"))
    texts = [tuple(row[:-1]) for _, row in rows]
    return Examples(texts, [_label(path, line, row[-1], task) for line, row in rows])


def found(path: Path) -> Path:
    """`path`, or it with ``.gz`` after its name. Raises FileNotFoundError if there is neither."""
    for candidate in (path, path.with_name(f"{path.name}.gz")):
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(f"{path} is missing; expected it there, plain or as {path.name}.gz")


def read_table(path: Path, columns: Sequence[str]) -> list[tuple[int, list[str]]]:
    """The named columns of each row of a tab-separated file, with its line number.

    Raises ValueError on a column that is missing or there twice, a row of another width, or an
    empty cell.
    """
    lines = read_utf8(path).split("\n")
    if lines[-1] == "":
        lines.pop()
    header = lines[0].rstrip("\r").split("\t") if lines else []
    missing = [name for name in columns if name not in header]
    if missing:
        raise ValueError(
            f"{path}, line 1: no column {missing[0]!r} in {header}; expected {columns}"
        )
    twice = [name for name in columns if header.count(name) > 1]
    if twice:
        raise ValueError(f"{path}, line 1: column {twice[0]!r} twice in {header}; expected once")
    places = [header.index(name) for name in columns]
    rows = []
    for number, line in enumerate(lines[1:], 2):
        cells = line.rstrip("\r").split("\t")
        if len(cells) != len(header):
            raise ValueError(
                f"{path}, line {number}: {len(cells)} columns; expected {len(header)}: {header}"
            )
        row = [cells[place].strip() for place in places]
        if not all(row):
            empty = columns[row.index("")]
            raise ValueError(f"{path}, line {number}: {empty} is empty; expected text")
        rows.append((number, row))
    if not rows:
        raise ValueError(f"{path}: no rows; expected at least one")
    return rows


def _label(path: Path, line: int, text: str, task: Task) -> int | float:
    try:
        value = float(text) if task.regression else int(text)
    except ValueError:
        value = math.nan
    last = LARGEST_SCORE if task.regression else len(task.labels) - 1
    if "_" in text or not 0 <= value <= last:  # Python reads 0_1 as 1
        kind = "a score" if task.regression else "a label"
        raise ValueError(f"{path}, line {line}: label {text!r}; expected {kind} of 0 to {last}")
    return value
