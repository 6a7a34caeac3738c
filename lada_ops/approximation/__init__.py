"""Approximation of a dense weight in a compressed format, without training."""
