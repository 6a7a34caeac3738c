"""``y = LN(act(x @ W.T + bias) + residual)`` by the native kernels."""

from __future__ import annotations

import ctypes

import torch

from . import native
from .packed import PackedLinear


def packed_linear_fwd(
    packed: PackedLinear,
    x: torch.Tensor,
    residual: torch.Tensor | None = None,
    activation: str = "none",
    norm: tuple[torch.Tensor, torch.Tensor, float] | None = None,
    library: ctypes.CDLL | None = None,
) -> torch.Tensor:
    """(M, out_features), contiguous, in x's dtype.

    Operands are checked by the caller: on the CPU, x and residual of `packed.io_dtype`, each row
    contiguous.

    Args:
        x: (M, in_features), any row stride.
        residual: (M, out_features), any row stride, or None; added after the activation.
        activation: a name known to `native.ACTIVATIONS`.
        norm: LayerNorm's weight (N,) and bias (N,), fp32, and eps, or None.
        library: one build of the kernels; the best for this machine if None.

    Raises MemoryError where there is no memory for intermediate results.
    """
    y = x.new_empty(len(x), packed.out_features)
    if y.numel() == 0:
        return y
    linear = packed.struct(activation)
    arrays = None if norm is None else (norm[0].numpy(), norm[1].numpy(), norm[2])
    norm_struct = native.norm_struct(arrays)
    failed = (library or native.library()).lada_linear(
        native.DTYPES[packed.dtype],
        ctypes.byref(linear),
        ctypes.byref(norm_struct),
        x.data_ptr(),
        x.stride(0),
        len(x),
        None if residual is None else residual.data_ptr(),
        0 if residual is None else residual.stride(0),
        y.data_ptr(),
        y.stride(0),
        native.threads(),
    )
    if failed:
        raise MemoryError(f"packed_linear: no memory for {len(x)} rows")
    return y
