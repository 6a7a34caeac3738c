"""Evaluation of a student beside its teacher: size, latency, scores, loyalty, robustness."""
