"""What the ops share: operand checks, the autocast rule, and the epilogue ``act(z) + residual``."""

from typing import Any

import torch
from torch import Tensor

from ..formats import FLOAT_DTYPES
from ..reference import ACTIVATIONS

# fp64 runs through the reference everywhere: it is for proofs, not for speed
KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def autocast(*tensors: Tensor | None) -> tuple[Any, ...]:
    """The tensors as autocast wants them: cast where it is enabled, as for `F.linear`.

    A custom op has no autocast rule of its own that follows a dtype chosen at run time.
    """
    device = next(t for t in tensors if t is not None).device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(
        t.to(dtype) if t is not None and t.is_floating_point() and t.dtype != torch.float64 else t
        for t in tensors
    )


def check_operands(op: str, x: Tensor, **tensors: Tensor | None) -> None:
    """Raise TypeError unless x is of a float dtype and every given tensor is of x's and with it."""
    if x.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{op}: x is {x.dtype}; expected one of {FLOAT_DTYPES}")
    for name, t in tensors.items():
        if t is not None and (t.dtype != x.dtype or t.device != x.device):
            raise TypeError(
                f"{op}: {name} is {t.dtype} on {t.device}; expected {x.dtype} on {x.device}, as x"
            )


def check_epilogue(
    op: str,
    x: Tensor,
    out_features: int,
    bias: Tensor | None,
    activation: str,
    residual: Tensor | None,
) -> None:
    """Raise ValueError unless bias is (out,), residual has the output's shape, and so on."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"{op}: activation {activation!r}; expected one of {list(ACTIVATIONS)}")
    if bias is not None and bias.shape != (out_features,):
        raise ValueError(f"{op}: bias {tuple(bias.shape)}; expected ({out_features},)")
    if residual is not None and residual.shape != (*x.shape[:-1], out_features):
        raise ValueError(
            f"{op}: residual {tuple(residual.shape)}; expected {(*x.shape[:-1], out_features)}"
        )


def check_x(op: str, x: Tensor, in_features: int) -> None:
    """Raise ValueError unless x is (..., in_features)."""
    if x.ndim == 0 or x.shape[-1] != in_features:
        raise ValueError(f"{op}: x {tuple(x.shape)}; expected (..., {in_features})")


def rows(t: Tensor) -> Tensor:
    """``t (..., features)`` as (tokens, features), each row contiguous, as the kernels want it."""
    t = t.reshape(-1, t.shape[-1])
    return t if t.stride(1) == 1 else t.contiguous()


def needs_grad(*tensors: Tensor | None) -> bool:
    """Whether autograd would record an operation on these tensors."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def activation_backward(grad: Tensor, z: Tensor, activation: str) -> Tensor:
    """``grad * act'(z)``."""
    aten = torch.ops.aten
    match activation:
        case "relu":
            return aten.threshold_backward(grad, z, 0)
        case "gelu":
            return aten.gelu_backward(grad, z)
        case "gelu_tanh":
            return aten.gelu_backward(grad, z, approximate="tanh")
        case "silu":
            return aten.silu_backward(grad, z)
        case "tanh":
            return aten.tanh_backward(grad, z.tanh())
        case _:
            return grad
