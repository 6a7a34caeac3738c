"""Texts that were changed to fool another BERT: how many of them fool this one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..data.glue import Examples, Task
from ..data.texts import find_file, read_table

_SETS = {  # file, columns of the original text, and the column that chooses rows, with its value
    "sst2": ("mr.tsv", ("orig_sentence",), ("orig_in_sst2_train", "0")),
    "mnli": ("mnli.tsv", ("orig_sentence", "orig_sentence2"), ("victim_fooled", "1")),
}


@dataclass(frozen=True)
class Attacked:
    """Successful TextFooler attacks (Jin et al., AAAI 2020) on another model: a transfer attack."""

    before: Examples
    after: Examples


def read_attacked(data: Path, task: Task) -> Attacked | None:
    """The attacks on texts of the task in ``robust/textfooler`` of `data`; None if it has no set.

    Texts that SST-2 trains on, and attacks that failed, are left out. Raises as `read_split`, and
    ValueError where no other is left.
    """
    if task.name not in _SETS:
        return None
    name, originals, (chooser, value) = _SETS[task.name]
    path = find_file(data / "robust" / "textfooler" / name)
    columns = (*task.columns, *originals, "label", chooser)
    rows = [(n, row) for n, row in read_table(path, columns) if row[-1] == value]
    if not rows:
        raise ValueError(f"{path}: no row has {chooser} {value}; expected at least one")
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
    """Accuracy before and after the attack, what it lost, and how many texts there are.

    predict: the logits (examples, labels) of a model.
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
