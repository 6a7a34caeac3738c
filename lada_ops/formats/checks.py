"""Checks of the tensors and sizes of a format."""

from __future__ import annotations

import torch
from torch import Tensor

FLOAT_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def check_finite(owner: str, weight: Tensor) -> None:
    """Raise ValueError if `weight` holds NaN or infinity."""
    if not weight.isfinite().all():
        raise ValueError(f"{owner}: the weight holds NaN or infinity; expected finite numbers")


def check_rank(owner: str, rank: int, shape: tuple[int, int]) -> None:
    """Raise ValueError unless ``1 <= rank <= min(shape)``."""
    if not 1 <= rank <= min(shape):
        raise ValueError(
            f"{owner}: rank {rank} for a weight {tuple(shape)}; expected 1 to {min(shape)}"
        )


def check_float(owner: str, **tensors: Tensor) -> None:
    """Raise TypeError unless all tensors are floating point, of one dtype and device."""
    (first_name, first), *rest = tensors.items()
    if first.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{owner}: {first_name} is {first.dtype}; expected one of {FLOAT_DTYPES}")
    for name, tensor in rest:
        if (tensor.dtype, tensor.device) != (first.dtype, first.device):
            raise TypeError(
                f"{owner}: {name} is {tensor.dtype} on {tensor.device}; "
                f"expected {first.dtype} on {first.device}, as {first_name}"
            )
