"""Low-rank linear: ``y = act(x v^T u^T + bias) + residual``."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..reference import low_rank_linear_ref
from .epilogue import (
    KERNEL_DTYPES,
    activation_backward,
    autocast,
    check_epilogue,
    check_operands,
    check_x,
    rows,
)


def low_rank_linear(
    x: Tensor,
    u: Tensor,
    v: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str = "none",
    residual: Tensor | None = None,
) -> Tensor:
    """``act(x v^T u^T + bias) + residual`` (..., out), without forming ``u @ v``.

    x (..., in), u (out, rank), v (rank, in), bias (out,), residual (..., out); fp32, fp16 or bf16
    on CUDA through a Triton kernel, any floating dtype elsewhere. activation: none, relu, gelu,
    gelu_tanh, silu or tanh. Differentiable; follows autocast as `F.linear` does.

    Raises ValueError on shapes that don't fit, TypeError on mixed dtypes or devices.
    """
    x, u, v, bias, residual = autocast(x, u, v, bias, residual)
    _check(x, u, v, bias, activation, residual)
    if x.is_cuda and not torch.compiler.is_exporting():
        return _op(x, u, v, bias, activation, residual)
    return low_rank_linear_ref(x, u, v, bias, activation, residual)


@torch.library.custom_op("lada::low_rank_linear", mutates_args=())
def _op(
    x: Tensor,
    u: Tensor,
    v: Tensor,
    bias: Tensor | None,
    activation: str,
    residual: Tensor | None,
) -> Tensor:
    return low_rank_linear_ref(x, u, v, bias, activation, residual)


@_op.register_kernel("cuda")
def _(x, u, v, bias, activation, residual):
    from lada_kernels.low_rank_linear import MAX_RANK, low_rank_linear_fwd

    if x.dtype not in KERNEL_DTYPES or v.shape[0] > MAX_RANK:
        return low_rank_linear_ref(x, u, v, bias, activation, residual)
    y = low_rank_linear_fwd(
        rows(x),
        u.contiguous(),
        v.contiguous(),
        None if bias is None else bias.contiguous(),
        None if residual is None else rows(residual),
        activation,
    )
    return y.view(*x.shape[:-1], u.shape[0])


@_op.register_fake
def _(x, u, v, bias, activation, residual):
    return x.new_empty(*x.shape[:-1], u.shape[0])


def _setup_context(ctx, inputs, output):
    x, u, v, bias, ctx.activation, _ = inputs
    ctx.save_for_backward(x, u, v, bias)


def _backward(ctx, grad):
    x, u, v, bias = ctx.saved_tensors
    x2 = x.reshape(-1, x.shape[-1])
    t = F.linear(x2, v)
    dz = grad.reshape(-1, grad.shape[-1])
    if ctx.activation != "none":
        dz = activation_backward(dz, F.linear(t, u, bias), ctx.activation)
    dt = dz @ u
    return (
        (dt @ v).view_as(x),
        dz.T @ t,
        dt.T @ x2,
        None if bias is None else dz.sum(0),
        None,
        grad if ctx.needs_input_grad[5] else None,
    )


_op.register_autograd(_backward, setup_context=_setup_context)


def _check(x, u, v, bias, activation, residual):
    op = "low_rank_linear"
    if u.ndim != 2 or v.ndim != 2 or u.shape[1] != v.shape[0]:
        raise ValueError(
            f"{op}: u {tuple(u.shape)} and v {tuple(v.shape)}; "
            "expected u (out, rank) and v (rank, in)"
        )
    check_x(op, x, v.shape[1])
    check_operands(op, x, u=u, v=v, bias=bias, residual=residual)
    check_epilogue(op, x, u.shape[0], bias, activation, residual)
