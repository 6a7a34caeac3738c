"""Checks of the ops' operands; an error names the op, the operand, what came and what fits."""

from torch import Tensor

from ..formats.checks import FLOAT_DTYPES
from .epilogue import split_norm
from .reference import ACTIVATIONS, Norm


def check_operands(op: str, x: Tensor, **tensors: Tensor | None) -> None:
    """Raise TypeError unless x is floating point and all tensors have its dtype and device."""
    if x.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{op}: x is {x.dtype}; expected one of {FLOAT_DTYPES}")
    for name, t in tensors.items():
        if t is not None and (t.dtype != x.dtype or t.device != x.device):
            raise TypeError(
                f"{op}: {name} is {t.dtype} on {t.device}; expected {x.dtype} on {x.device}, as x"
            )


def check_x(op: str, x: Tensor, in_features: int) -> None:
    """Raise ValueError unless x is (..., in_features)."""
    if x.ndim == 0 or x.shape[-1] != in_features:
        raise ValueError(f"{op}: x {tuple(x.shape)}; expected (..., {in_features})")


def check_epilogue(
    op: str,
    x: Tensor,
    out_features: int,
    bias: Tensor | None,
    activation: str,
    residual: Tensor | None,
    norm: Norm | None = None,
    dense: Tensor | None = None,
) -> None:
    """Raise ValueError or TypeError unless the epilogue fits x and out_features."""
    weight, shift, eps = split_norm(norm)
    named = {"bias": bias, "norm.weight": weight, "norm.bias": shift}
    check_operands(op, x, residual=residual, dense=dense, **named)
    if activation not in ACTIVATIONS:
        raise ValueError(f"{op}: activation {activation!r}; expected one of {list(ACTIVATIONS)}")
    for name, t in named.items():
        if t is not None and t.shape != (out_features,):
            raise ValueError(f"{op}: {name} {tuple(t.shape)}; expected ({out_features},)")
    if norm is not None and not eps >= 0:
        raise ValueError(f"{op}: norm.eps {eps}; expected 0 or more")
    if dense is not None and dense.shape != (out_features, x.shape[-1]):
        raise ValueError(
            f"{op}: dense {tuple(dense.shape)}; expected {(out_features, x.shape[-1])}"
        )
    if residual is not None and residual.shape != (*x.shape[:-1], out_features):
        raise ValueError(
            f"{op}: residual {tuple(residual.shape)}; expected {(*x.shape[:-1], out_features)}"
        )
