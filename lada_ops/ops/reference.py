"""References of the ops in plain torch: slow, differentiable, exportable, for any dtype."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..formats.bsr import bsr_to_dense

ACTIVATIONS = {
    "none": lambda z: z,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
    "silu": F.silu,
    "tanh": torch.tanh,
}


class Norm(NamedTuple):
    """LayerNorm over the output features: weight (out,), bias (out,), eps."""

    weight: Tensor
    bias: Tensor
    eps: float = 1e-12


def epilogue_ref(
    z: Tensor,
    activation: str = "none",
    residual: Tensor | None = None,
    norm: Norm | None = None,
) -> Tensor:
    """``LN(act(z) + residual)``."""
    y = ACTIVATIONS[activation](z)
    if residual is not None:
        y = y + residual
    if norm is not None:
        # autocast would leave it in fp32
        y = F.layer_norm(y, norm.weight.shape, *norm).to(y.dtype)
    return y


def grouped_linear(t: Tensor, u: Tensor, bias: Tensor | None, groups: int) -> Tensor:
    """Product of t (..., groups * rank) and u (out, rank): each column group by its row group."""
    if groups == 1:
        return F.linear(t, u, bias)
    pairs = zip(t.chunk(groups, -1), u.chunk(groups), strict=True)
    z = torch.cat([F.linear(part, rows) for part, rows in pairs], -1)
    return z if bias is None else z + bias


def low_rank_linear_ref(
    x: Tensor, u: Tensor, v: Tensor, bias: Tensor | None = None, *epilogue: Any, groups: int = 1
) -> Tensor:
    """``LN(act(x v^T u^T + bias) + residual)``, for `groups` pairs of factors that share x.

    epilogue: activation, residual and norm, of `epilogue_ref`.
    """
    return epilogue_ref(grouped_linear(F.linear(x, v), u, bias, groups), *epilogue)


def low_rank_ffn_ref(
    x: Tensor,
    u1: Tensor,
    v1: Tensor,
    bias1: Tensor | None,
    u2: Tensor,
    v2: Tensor,
    bias2: Tensor | None,
    activation: str = "gelu",
    *residual_norm: Any,
) -> Tensor:
    """``LN(act(x v1^T u1^T + bias1) v2^T u2^T + bias2 + residual)``.

    residual_norm: residual and norm, of `epilogue_ref`.
    """
    h = low_rank_linear_ref(x, u1, v1, bias1, activation)
    return low_rank_linear_ref(h, u2, v2, bias2, "none", *residual_norm)


def block_sparse_linear_ref(
    x: Tensor,
    crow_indices: Tensor,
    col_indices: Tensor,
    values: Tensor,
    bias: Tensor | None = None,
    *epilogue: Any,
) -> Tensor:
    """``LN(act(x S^T + bias) + residual)`` with S as a dense weight.

    epilogue: as in `low_rank_linear_ref`.
    """
    weight = bsr_to_dense(crow_indices, col_indices, values, x.shape[-1])
    return epilogue_ref(F.linear(x, weight, bias), *epilogue)


def sparse_low_rank_linear_ref(
    x: Tensor,
    u: Tensor,
    v: Tensor,
    crow_indices: Tensor,
    col_indices: Tensor,
    values: Tensor,
    bias: Tensor | None = None,
    *epilogue: Any,
    groups: int = 1,
) -> Tensor:
    """``LN(act(x v^T u^T + x S^T + bias) + residual)`` with S as a dense weight.

    groups, epilogue: as in `low_rank_linear_ref`.
    """
    weight = bsr_to_dense(crow_indices, col_indices, values, x.shape[-1])
    z = grouped_linear(F.linear(x, v), u, bias, groups) + F.linear(x, weight)
    return epilogue_ref(z, *epilogue)
