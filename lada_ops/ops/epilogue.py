"""Epilogue ``LN(act(z) + residual)`` of the ops: arguments of a launch, and gradients."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .dispatch import contiguous, needs_grad, rows
from .reference import Norm, epilogue_ref

if TYPE_CHECKING:
    from lada_kernels.epilogue import Epilogue


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


def split_norm(norm: Norm | None) -> tuple[Tensor | None, Tensor | None, float]:
    """Weight, bias and eps of `norm`, as arguments of a custom op."""
    return (None, None, 0.0) if norm is None else (norm[0], norm[1], float(norm[2]))


def join_norm(weight: Tensor | None, bias: Tensor | None, eps: float) -> Norm | None:
    """Inverse of `split_norm`."""
    return None if weight is None or bias is None else Norm(weight, bias, eps)


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
