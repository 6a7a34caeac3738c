"""Robustness: accuracy on texts that were changed to fool another BERT."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..data.glue import Examples, Task
from ..data.texts import find_file, read_table

_SETS = {  # file, columns of the original text, column that selects rows and its value
    "sst2": ("mr.tsv", ("orig_sentence",), ("orig_in_sst2_train", "0")),
    "mnli": ("mnli.tsv", ("orig_sentence", "orig_sentence2"), ("victim_fooled", "1")),
}


@dataclass(frozen=True)
class Attacked:
    """Texts before and after TextFooler attacks (Jin et al., AAAI 2020) on another model."""

    before: Examples
    after: Examples


def read_attacked(data: Path, task: Task) -> Attacked | None:
    """Attacked texts of the task, from ``robust/textfooler`` in `data`; None for other tasks.

    Leaves out texts of SST-2's training set, and attacks that failed.

    Raises ValueError where no row is left, and as `read_split` does.
    """
    if task.name not in _SETS:
        return None
    name, originals, (selector, value) = _SETS[task.name]
    path = find_file(data / "robust" / "textfooler" / name)
    columns = (*task.columns, *originals, "label", selector)
    rows = [(n, row) for n, row in read_table(path, columns) if row[-1] == value]
    if not rows:
        raise ValueError(f"{path}: no row has {selector} {value}; expected at least one")
    labels = []
    for number, row in rows:
        if row[-2] not in map(str, range(len(task.labels))):
            raise ValueError(
                f"{path}, line {number}: label {row[-2]!r}; expected 0 to {len(task.labels) - 1}"
            )
        labels.append(int(row[-2]))
    size = len(task.columns)
    return Attacked(
        Examples([tuple(row[size : 2 * size]) for _, row in rows], labels),
        Examples([tuple(row[:size]) for _, row in rows], labels),
    )


def robustness(attacked: Attacked, predict: Callable[[Examples], np.ndarray]) -> dict[str, float]:
    """Accuracy before and after the attack, their difference, and the number of texts.

    predict: function that gives a model's logits (examples, labels).
    """
    labels = np.asarray(attacked.before.labels)
    before, after = (
        float((predict(examples).argmax(1) == labels).mean())
        for examples in (attacked.before, attacked.after)
    )
    return {
        "before_attack": before,
        "after_attack": after,
        "lost": before - after,
        "texts": len(labels),
    }
