"""Linear with epilogue on packed weights: ``y = LN(act(x W^T + bias) + residual)``."""

from __future__ import annotations

import ctypes

import torch

from . import abi, native
from .packed import PackedWeight


def packed_linear_fwd(
    packed: PackedWeight,
    x: torch.Tensor,
    residual: torch.Tensor | None = None,
    activation: str = "none",
    norm: tuple[torch.Tensor, torch.Tensor, float] | None = None,
    library: ctypes.CDLL | None = None,
) -> torch.Tensor:
    """y (M, out_features), contiguous, in x's dtype.

    Operands are checked by the caller: x and residual on the CPU, of `packed.io_dtype`, each row
    contiguous.

    Args:
        x: (M, in_features), any row stride.
        residual: (M, out_features), any row stride, or None; added after the activation.
        activation: a name in `abi.ACTIVATIONS`.
        norm: LayerNorm's weight (N,) and bias (N,), fp32, and eps, or None.
        library: one build of the kernels; the best for this machine if None.

    Raises MemoryError where intermediate results do not fit into memory.
    """
    y = x.new_empty(len(x), packed.out_features)
    if y.numel() == 0:
        return y
    linear = packed.struct(activation)
    arrays = None if norm is None else (norm[0].numpy(), norm[1].numpy(), norm[2])
    layer_norm = abi.layer_norm(arrays)
    failed = (library or native.library()).lada_linear(
        abi.DTYPES[packed.dtype],
        ctypes.byref(linear),
        ctypes.byref(layer_norm),
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
