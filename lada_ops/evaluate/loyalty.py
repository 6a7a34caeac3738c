"""How far a student answers as its teacher does, right or wrong (Xu et al., EMNLP 2021)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def label_loyalty(teacher: ArrayLike, student: ArrayLike) -> float:
    """The share of examples to which both give the same label; logits (examples, labels)."""
    teacher, student = _checked(teacher, student)
    return float((teacher.argmax(1) == student.argmax(1)).mean())


def probability_loyalty(teacher: ArrayLike, student: ArrayLike) -> float:
    """The mean of ``1 - sqrt(JS(P_teacher || P_student))``, 0 to 1; logits (examples, labels).

    JS is the Jensen-Shannon divergence in base 2, of which scipy's function gives the root.
    """
    from scipy.spatial.distance import jensenshannon
    from scipy.special import softmax

    teacher, student = _checked(teacher, student)
    both = (softmax(logits, axis=1).T for logits in (teacher, student))
    distances = jensenshannon(*both, base=2)  # of columns
    # of two that are equal, rounding may leave less than nothing under the root
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
