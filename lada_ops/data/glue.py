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

from .texts import find_file, read_table

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


@dataclass(frozen=True)
class SentencePairs:
    """Pairs of sentences and how alike people found them: STS-B's scores, 0 to 5."""

    first: Sequence[str]
    second: Sequence[str]
    scores: Sequence[float]


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
    return read_examples(find_file(data / "glue" / task.name / name), task)


def read_examples(path: Path, task: Task) -> Examples:
    """The examples of a file of the task.

    Raises ValueError with file and line where it is malformed, OSError where it cannot be read.
    """
    rows = read_table(path, (*task.columns, "label"))
    texts = [tuple(row[:-1]) for _, row in rows]
    return Examples(texts, [_label(path, line, row[-1], task) for line, row in rows])


def read_pairs(path: str | Path) -> SentencePairs:
    """Pairs from a tab-separated file with the columns sentence, sentence2 and label.

    Raises ValueError with file and line where the columns or the scores are not that.
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
        kind = "a score" if task.regression else "a label"
        raise ValueError(f"{path}, line {line}: label {text!r}; expected {kind} of 0 to {last}")
    return value
