"""Checks, autocast rule and epilogue ``LN(act(z) + residual)`` of the ops."""

import functools
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from ..formats.checks import FLOAT_DTYPES
from ..host.user_tables import use_user_tables
from .reference import ACTIVATIONS, Norm, epilogue_ref
from .tracing import exporter, transforming

if TYPE_CHECKING:
    from lada_kernels.epilogue import Epilogue

Result = TypeVar("Result")

# fp64 runs through the reference everywhere: it is for proofs, not for speed
KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def autocast(*tensors: Tensor | None) -> tuple[Any, ...]:
    """The tensors, cast to autocast's dtype where it is enabled, as for `F.linear`.

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
    """Raise TypeError unless x is floating point and all tensors have its dtype and device."""
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


def check_x(op: str, x: Tensor, in_features: int) -> None:
    """Raise ValueError unless x is (..., in_features)."""
    if x.ndim == 0 or x.shape[-1] != in_features:
        raise ValueError(f"{op}: x {tuple(x.shape)}; expected (..., {in_features})")


def rows(t: Tensor) -> Tensor:
    """`t` (..., features) as (tokens, features) with contiguous rows, for the kernels."""
    t = t.reshape(-1, t.shape[-1])
    return t if t.stride(1) == 1 else t.contiguous()


def contiguous(t: Tensor | None) -> Tensor | None:
    """`t` contiguous, or None."""
    return None if t is None else t.contiguous()


def kernel_epilogue(
    bias: Tensor | None = None,
    activation: str = "none",
    residual: Tensor | None = None,
    norm: Norm | None = None,
    exact_gelu: bool = False,
) -> "Epilogue":
    """Epilogue of a kernel launch, its tensors laid out for the kernels."""
    from lada_kernels.epilogue import Epilogue

    residual = None if residual is None else rows(residual)
    if norm is not None:
        norm = Norm(norm.weight.contiguous(), norm.bias.contiguous(), norm.eps)
    return Epilogue(contiguous(bias), activation, residual, norm, exact_gelu)


def on_its_gpu(body: Callable[..., Result]) -> Callable[..., Result]:
    """`body`, run with its first argument's GPU as the current device, where Triton launches."""

    @functools.wraps(body)
    def run(x: Tensor, *args: Any, **kwargs: Any) -> Result:
        if not x.is_cuda:
            return body(x, *args, **kwargs)
        with torch.cuda.device_of(x):
            return body(x, *args, **kwargs)

    return run


def wants_plain() -> bool:
    """True if a call must run the reference, made of torch's own operators.

    Exporters know no other operators; transforms take no custom op and see no in-place writes.
    """
    return exporter() is not None or transforming()


def needs_grad(*tensors: Tensor | None) -> bool:
    """True if autograd would record an operation on these tensors."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def split_norm(norm: Norm | None) -> tuple[Tensor | None, Tensor | None, float]:
    """Weight, bias and eps of `norm`, as arguments of a custom op."""
    return (None, None, 0.0) if norm is None else (norm[0], norm[1], float(norm[2]))


def join_norm(weight: Tensor | None, bias: Tensor | None, eps: float) -> Norm | None:
    """Inverse of `split_norm`."""
    return None if weight is None or bias is None else Norm(weight, bias, eps)


def kernels_run(op: str, x: Tensor) -> bool:
    """True if x is on a GPU and of a dtype that the kernels run; warns once of too old a GPU."""
    if not x.is_cuda:
        return False
    from lada_kernels.tuning import unsupported

    use_user_tables()
    reason = unsupported(x.get_device())
    if reason is not None:
        warn_once(f"{op}: runs in plain torch: {reason}")
    return reason is None and x.dtype in KERNEL_DTYPES


@functools.cache
def warn_once(message: str) -> None:
    """Warn of `message`, the first time in this process."""
    warnings.warn(message, stacklevel=2)


def epilogue_backward(
    grad: Tensor,
    product: Callable[[], Tensor],
    activation: str,
    residual: Tensor | None,
    norm: Norm | None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Gradients of the product z, of residual (both as grad), and of norm's weight and bias (out,).

    grad, residual (..., out). product: computes z anew; called if `needs_product`.
    """
    z = product().view_as(grad) if needs_product(activation, norm) else grad
    d_weight = d_bias = None
    if norm is not None:
        weight, bias, eps = norm
        y = epilogue_ref(z, activation, residual)
        shape = list(weight.shape)
        _, mean, rstd = torch.native_layer_norm(y, shape, weight, bias, eps)
        grad, d_weight, d_bias = torch.ops.aten.native_layer_norm_backward(
            grad, y, shape, mean, rstd, weight, bias, [True, True, True]
        )
    return activation_backward(grad, z, activation), grad, d_weight, d_bias


def needs_product(activation: str, norm: Norm | None) -> bool:
    """True if the gradients of an epilogue depend on the product."""
    return activation != "none" or norm is not None


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
        case "silu" if needs_grad(grad, z):  # aten's silu_backward has no derivative
            sigmoid = z.sigmoid()
            return grad * sigmoid * (1 + z * (1 - sigmoid))
        case "silu":
            return aten.silu_backward(grad, z)
        case "tanh":
            return aten.tanh_backward(grad, z.tanh())
        case _:
            return grad
