"""The kernels' epilogue in torch, for the ways that leave the product to torch."""

import torch
import torch.nn.functional as F

_ACTIVATIONS = {
    "none": lambda z: z,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
    "silu": F.silu,
    "tanh": torch.tanh,
}

Norm = tuple[torch.Tensor, torch.Tensor, float]
"""LayerNorm's weight (N,), bias (N,) and eps."""


def torch_epilogue(
    z: torch.Tensor, activation: str, residual: torch.Tensor | None, norm: Norm | None
) -> torch.Tensor:
    """``LN(act(z) + residual)`` of z (M, N), which may be overwritten."""
    y = _ACTIVATIONS[activation](z)
    if residual is not None:
        y = y + residual
    if norm is not None:
        weight, bias, eps = norm
        # autocast would leave it in fp32
        y = F.layer_norm(y, weight.shape, weight, bias, eps).to(y.dtype)
    return y


def epilogue_kind(activation: str, residual: torch.Tensor | None, norm: Norm | None) -> str:
    """What follows the product and its bias: "plain" (nothing), "fused", or "norm".

    cuBLAS does the first alone; the second needs a tile at a time, the third whole rows.
    """
    if norm is not None:
        return "norm"
    return "plain" if activation == "none" and residual is None else "fused"
