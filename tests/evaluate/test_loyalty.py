import numpy as np
import pytest

from lada_ops.evaluate.loyalty import label_loyalty, probability_loyalty

SURE, OTHER = np.array([[1e3, 0], [0, 1e3]]), np.array([[0, 1e3], [1e3, 0]])


def test_equal_models_are_wholly_loyal():
    logits = np.random.default_rng(0).normal(size=(50, 3))
    assert label_loyalty(logits, logits) == 1
    assert probability_loyalty(logits, logits) == pytest.approx(1, abs=1e-6)


def test_disjoint_models_are_not_loyal_at_all():
    assert label_loyalty(SURE, OTHER) == 0
    assert probability_loyalty(SURE, OTHER) == pytest.approx(0, abs=1e-9)


def test_probability_loyalty_by_its_formula():
    rng = np.random.default_rng(1)
    teacher, student = rng.normal(size=(2, 20, 4))

    def softmax(x):
        return np.exp(x) / np.exp(x).sum(1, keepdims=True)

    def kl(p, q):
        return (p * np.log2(p / q)).sum(1)

    p, q = softmax(teacher), softmax(student)
    js = (kl(p, (p + q) / 2) + kl(q, (p + q) / 2)) / 2
    assert probability_loyalty(teacher, student) == pytest.approx((1 - np.sqrt(js)).mean())


def test_label_loyalty_counts_the_same_labels():
    assert label_loyalty([[1, 0], [1, 0], [0, 1], [0, 1]], [[9, 8], [8, 9], [0, 9], [1, 2]]) == 0.75


@pytest.mark.parametrize(
    ("teacher", "student", "message"),
    [
        (np.ones((3, 2)), np.ones((4, 2)), r"teacher \(3, 2\), student \(4, 2\)"),
        (np.ones((3, 1)), np.ones((3, 1)), "of two labels or more"),
        (np.ones((3, 2)), np.full((3, 2), np.nan), "NaN or infinity"),
    ],
)
def test_logits_that_do_not_fit(teacher, student, message):
    for loyalty in (label_loyalty, probability_loyalty):
        with pytest.raises(ValueError, match=message):
            loyalty(teacher, student)
