"""The metrics of GLUE, computed by scikit-learn and scipy."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .glue import Task


def predictions(task: Task, logits: ArrayLike) -> NDArray[Any]:
    """The label ids (examples,) of logits (examples, labels), or the scores that they are."""
    logits = np.asarray(logits, dtype=np.float64).reshape(-1, task.num_labels)
    if not np.isfinite(logits).all():
        raise ValueError("the model's outputs hold NaN or infinity; expected finite ones")
    return logits[:, 0] if task.regression else logits.argmax(1)


def scores(
    task: Task, logits: ArrayLike, labels: Sequence[int] | Sequence[float]
) -> dict[str, float]:
    """Every metric that is usual for the task, `Task.metric` first, in 0 to 1 or -1 to 1.

    A correlation where predictions or labels are all the same is 0: they tell nothing.

    Raises ValueError on logits that are not finite.
    """
    from scipy.stats import ConstantInputWarning, pearsonr, spearmanr
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    got, want = predictions(task, logits), np.asarray(labels)
    if task.regression:
        if len(want) < 2:  # for which scipy has no answer
            return {"spearman": 0.0, "pearson": 0.0}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConstantInputWarning)
            both = {"spearman": spearmanr(got, want)[0], "pearson": pearsonr(got, want)[0]}
        return {name: float(np.nan_to_num(np.asarray(value))) for name, value in both.items()}
    found = {"accuracy": float(accuracy_score(want, got))}
    if task.metric == "f1":
        found = {"f1": float(f1_score(want, got, zero_division=0)), **found}  # type: ignore[arg-type]
    if task.metric == "matthews":
        found = {"matthews": float(matthews_corrcoef(want, got)), **found}
    return found


def compute_metrics(task: Task) -> Callable[[Any], dict[str, float]]:
    """`scores` as `transformers.Trainer` calls it."""

    def computed(prediction: Any) -> dict[str, float]:
        return scores(task, prediction.predictions, prediction.label_ids)

    return computed
