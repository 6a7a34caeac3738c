"""Loyalty of a student to its teacher, right or wrong (Xu et al., EMNLP 2021)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def label_loyalty(teacher: ArrayLike, student: ArrayLike) -> float:
    """Share of examples with the same predicted label; both logits are (examples, labels)."""
    teacher, student = _checked(teacher, student)
    return float((teacher.argmax(1) == student.argmax(1)).mean())


def probability_loyalty(teacher: ArrayLike, student: ArrayLike) -> float:
    """Mean of ``1 - sqrt(JS(P_teacher || P_student))``, 0 to 1; both logits (examples, labels).

    JS is the Jensen-Shannon divergence in base 2; scipy's `jensenshannon` is its square root.
    """
    from scipy.spatial.distance import jensenshannon
    from scipy.special import softmax

    teacher, student = _checked(teacher, student)
    p, q = (softmax(logits, axis=1).T for logits in (teacher, student))
    distances = jensenshannon(p, q, base=2)  # by column
    # for equal distributions rounding may give the square root of a negative number, a NaN
    return float(1 - np.nan_to_num(distances).mean())


def _checked(teacher: ArrayLike, student: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    both = np.asarray(teacher, np.float64), np.asarray(student, np.float64)
    if both[0].shape != both[1].shape or both[0].ndim != 2 or both[0].shape[1] < 2:
        raise ValueError(
            f"loyalty: teacher {both[0].shape}, student {both[1].shape}; expected the logits of "
            "both, (examples, labels), of two labels or more"
        )
    if not all(np.isfinite(logits).all() for logits in both):
        raise ValueError("loyalty: logits hold NaN or infinity; expected finite ones")
    return both
