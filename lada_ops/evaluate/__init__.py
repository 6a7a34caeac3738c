"""Evaluation of a student beside its teacher: size, latency, scores, loyalty, robustness."""

from .evaluation import evaluate
from .loyalty import label_loyalty, probability_loyalty

__all__ = ["evaluate", "label_loyalty", "probability_loyalty"]
