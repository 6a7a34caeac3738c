from types import SimpleNamespace

import numpy as np
import pytest

from lada_ops.data.glue import TASKS
from lada_ops.data.metrics import compute_metrics, scores

LOGITS = np.array([[2.0, 1], [0, 3], [0, 1], [5, 1]])  # predictions 0 1 1 0


def test_accuracy_f1_and_matthews_by_hand():
    labels = [0, 1, 0, 1]  # one each: true and false, positive and negative
    assert scores(TASKS["sst2"], LOGITS, labels) == {"accuracy": 0.5}
    assert scores(TASKS["mrpc"], LOGITS, labels) == {"f1": 0.5, "accuracy": 0.5}
    assert scores(TASKS["cola"], LOGITS, labels) == {"matthews": 0.0, "accuracy": 0.5}
    labels = [0, 1, 1, 1]  # tp 2, fn 1, tn 1
    assert scores(TASKS["mrpc"], LOGITS, labels)["f1"] == pytest.approx(0.8)
    assert scores(TASKS["cola"], LOGITS, labels)["matthews"] == pytest.approx(2 / np.sqrt(12))


def test_correlations():
    got = scores(TASKS["stsb"], [[1.0], [4], [9], [16]], [1, 2, 3, 4])
    assert got["spearman"] == pytest.approx(1)
    assert got["pearson"] == pytest.approx(np.corrcoef([1, 4, 9, 16], [1, 2, 3, 4])[0, 1])
    assert list(got) == ["spearman", "pearson"]


def test_what_tells_nothing_is_0():
    assert scores(TASKS["stsb"], np.ones((3, 1)), [1, 2, 3]) == {"spearman": 0, "pearson": 0}
    assert scores(TASKS["stsb"], [[3.0]], [3]) == {"spearman": 0, "pearson": 0}
    assert scores(TASKS["stsb"], [[1.0], [2], [3]], [4, 4, 4]) == {"spearman": 0, "pearson": 0}
    always = np.array([[1.0, 0]] * 3)
    assert scores(TASKS["cola"], always, [0, 1, 1])["matthews"] == 0
    assert scores(TASKS["mrpc"], always, [0, 1, 1])["f1"] == 0


def test_outputs_that_are_not_finite_have_no_score():
    with pytest.raises(ValueError, match="NaN or infinity"):
        scores(TASKS["sst2"], [[float("nan"), 1]], [1])


def test_as_trainer_calls_it():
    prediction = SimpleNamespace(predictions=LOGITS, label_ids=np.array([0, 1, 1, 0]))
    assert compute_metrics(TASKS["sst2"])(prediction) == {"accuracy": 1.0}


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_every_task_has_its_metric_first(task):
    logits = np.eye(task.num_labels)[[0] * 3] if task.num_labels > 1 else np.zeros((3, 1))
    assert next(iter(scores(task, logits, [0, 0, 0]))) == task.metric
