"""What every op means, in plain torch: slow, differentiable, exportable, and right in any dtype."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .formats import bsr_to_dense

ACTIVATIONS = {
    "none": lambda z: z,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
    "silu": F.silu,
    "tanh": torch.tanh,
}


def epilogue_ref(z: Tensor, activation: str = "none", residual: Tensor | None = None) -> Tensor:
    """``act(z) + residual``."""
    y = ACTIVATIONS[activation](z)
    return y if residual is None else y + residual


def low_rank_linear_ref(
    x: Tensor,
    u: Tensor,
    v: Tensor,
    bias: Tensor | None = None,
    activation: str = "none",
    residual: Tensor | None = None,
) -> Tensor:
    """``act(x v^T u^T + bias) + residual``."""
    return epilogue_ref(F.linear(F.linear(x, v), u, bias), activation, residual)


def block_sparse_linear_ref(
    x: Tensor,
    crow_indices: Tensor,
    col_indices: Tensor,
    values: Tensor,
    bias: Tensor | None = None,
    activation: str = "none",
    residual: Tensor | None = None,
) -> Tensor:
    """``act(x S^T + bias) + residual`` with S as a dense weight."""
    weight = bsr_to_dense(crow_indices, col_indices, values, x.shape[-1])
    return epilogue_ref(F.linear(x, weight, bias), activation, residual)


def sparse_low_rank_linear_ref(
    x: Tensor,
    u: Tensor,
    v: Tensor,
    crow_indices: Tensor,
    col_indices: Tensor,
    values: Tensor,
    bias: Tensor | None = None,
    activation: str = "none",
    residual: Tensor | None = None,
) -> Tensor:
    """``act(x v^T u^T + x S^T + bias) + residual`` with S as a dense weight."""
    weight = bsr_to_dense(crow_indices, col_indices, values, x.shape[-1])
    z = F.linear(F.linear(x, v), u, bias) + F.linear(x, weight)
    return epilogue_ref(z, activation, residual)
