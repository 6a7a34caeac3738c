"""GLUE tasks and their files.

Files are ``glue/TASK/train.tsv`` and ``dev.tsv`` in the user's data folder, plain or gzipped
(``.tsv.gz``); the dev set of MNLI is ``dev_matched_1k.tsv``. For their format see
`texts.read_table`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .texts import find_file, read_table

Split = Literal["train", "dev"]


@dataclass(frozen=True)
class Task:
    """Task of GLUE: its columns of text, its label names by id, its main metric.

    labels: empty for a regression with scores of 0 to 5. dev_file: name of the dev set's file.
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
        """Number of logits of a model for the task."""
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
    """Examples of a task: their texts, one or two each, and their labels, ids or scores."""

    texts: Sequence[tuple[str, ...]]
    labels: Sequence[int] | Sequence[float]

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class SentencePairs:
    """Sentence pairs and their similarity scores by people, 0 to 5 (STS-B)."""

    first: Sequence[str]
    second: Sequence[str]
    scores: Sequence[float]


def find_task(name: str) -> Task:
    """Task by name. Raises ValueError on an unknown name."""
    if name not in TASKS:
        raise ValueError(f"task {name!r}; expected one of {', '.join(TASKS)}")
    return TASKS[name]


def read_split(data: Path, task: Task, split: Split, file: str | None = None) -> Examples:
    """Examples of a split in the data folder; `file` replaces the split's default file name.

    Raises FileNotFoundError where the file is missing, ValueError with file and line where it is
    malformed.
    """
    name = file or (task.dev_file if split == "dev" else "train.tsv")
    return read_examples(find_file(data / "glue" / task.name / name), task)


def read_examples(path: Path, task: Task) -> Examples:
    """Examples in a file of the task.

    Raises ValueError with file and line where it is malformed, OSError where it cannot be read.
    """
    rows = read_table(path, (*task.columns, "label"))
    texts = [tuple(row[:-1]) for _, row in rows]
    return Examples(texts, [_label(path, line, row[-1], task) for line, row in rows])


def read_pairs(path: str | Path) -> SentencePairs:
    """Sentence pairs from a TSV file with the columns sentence, sentence2 and label.

    Raises ValueError with file and line where columns are missing or a score is not of 0 to 5.
    """
    examples = read_examples(Path(path), TASKS["stsb"])
    first, second = zip(*examples.texts, strict=True)
    return SentencePairs(first, second, examples.labels)


def _label(path: Path, line: int, text: str, task: Task) -> int | float:
    try:
        value = float(text) if task.regression else int(text)
    except ValueError:
        value = math.nan
    last = LARGEST_SCORE if task.regression else len(task.labels) - 1
    if "_" in text or not 0 <= value <= last:  # Python reads 0_1 as 1
        expected = "a score" if task.regression else "a label"
        raise ValueError(f"{path}, line {line}: label {text!r}; expected {expected} of 0 to {last}")
    return value
