"""Metrics of GLUE, computed by scikit-learn and scipy."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .glue import Task


def predictions(task: Task, logits: ArrayLike) -> NDArray[Any]:
    """Predictions (examples,) of logits (examples, labels): label ids, or scores of a regression.

    Raises ValueError on logits that are not finite.
    """
    logits = np.asarray(logits, dtype=np.float64).reshape(-1, task.num_labels)
    if not np.isfinite(logits).all():
        raise ValueError("the model's outputs hold NaN or infinity; expected finite ones")
    return logits[:, 0] if task.regression else logits.argmax(1)


def scores(
    task: Task, logits: ArrayLike, labels: Sequence[int] | Sequence[float]
) -> dict[str, float]:
    """Metrics that are usual for the task, `Task.metric` first.

    A correlation is 0 where all predictions or all labels are equal, or there is one example.

    Raises ValueError on logits that are not finite.
    """
    from scipy.stats import ConstantInputWarning, pearsonr, spearmanr
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    got, want = predictions(task, logits), np.asarray(labels)
    if task.regression:
        if len(want) < 2:  # scipy raises
            return {"spearman": 0.0, "pearson": 0.0}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConstantInputWarning)
            both = {"spearman": spearmanr(got, want)[0], "pearson": pearsonr(got, want)[0]}
        return {name: float(np.nan_to_num(np.asarray(value))) for name, value in both.items()}
    metrics = {"accuracy": float(accuracy_score(want, got))}
    if task.metric == "f1":
        metrics = {"f1": float(f1_score(want, got, zero_division=0)), **metrics}  # type: ignore[arg-type]
    if task.metric == "matthews":
        metrics = {"matthews": float(matthews_corrcoef(want, got)), **metrics}
    return metrics


def compute_metrics(task: Task) -> Callable[[Any], dict[str, float]]:
    """Function that computes `scores`, in the form that `transformers.Trainer` calls."""

    def computed(prediction: Any) -> dict[str, float]:
        return scores(task, prediction.predictions, prediction.label_ids)

    return computed
