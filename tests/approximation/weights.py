"""Weights, inputs and errors for the tests of compression."""

import torch
from torch import Tensor

SHAPES = [(24, 40), (40, 24), (32, 32), (1, 16), (16, 1)]


def inputs_and_gram(features: int, tokens: int = 200) -> tuple[Tensor, Tensor]:
    """X (features, tokens) fp64 with correlated rows of very different sizes, and ``X X^T``."""
    mixed = torch.randn(features, features, dtype=torch.float64)
    sizes = torch.logspace(1, -2, features, dtype=torch.float64)
    x = sizes[:, None] * (mixed @ torch.randn(features, tokens, dtype=torch.float64))
    return x, x @ x.T


def norm(weight: Tensor) -> float:
    return float(torch.linalg.norm(weight.double()))
