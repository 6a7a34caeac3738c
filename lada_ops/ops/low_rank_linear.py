"""Low-rank linear: ``y = LN(act(x v^T u^T + bias) + residual)``."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..reference import Norm, grouped_linear, low_rank_linear_ref
from .epilogue import (
    autocast,
    check_epilogue,
    check_operands,
    check_x,
    contiguous,
    epilogue_backward,
    join_norm,
    kernels_run,
    needs_z,
    on_its_gpu,
    rows,
    split_norm,
)


def low_rank_linear(
    x: Tensor,
    u: Tensor,
    v: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str = "none",
    residual: Tensor | None = None,
    norm: Norm | None = None,
    groups: int = 1,
    exact: bool = False,
    dense: Tensor | None = None,
) -> Tensor:
    """``LN(act(x v^T u^T + bias) + residual)`` (..., out), without forming ``u @ v``.

    x (..., in), u (out, rank), v (groups * rank, in), bias (out,), residual (..., out); fp32, fp16
    or bf16 on CUDA through a Triton kernel, any floating dtype elsewhere. Differentiable; follows
    autocast as `F.linear` does.

    activation: none, relu, gelu, gelu_tanh, silu or tanh. In fp16 and bf16 on CUDA, gelu is a
        polynomial within 2e-4 of erf's; exact=True asks for erf's there too (3e-7, slower).
    norm: a LayerNorm over the output, applied last.
    groups: how many pairs of factors share x, such as 3 for query, key and value: the rows of u,
        and of v, in as many equal runs; run g of the output is by run g of each.
    dense: ``u @ v``, if the caller keeps it: then a dense product is made where that is faster, on
        CUDA only. It gets no gradient.

    Raises ValueError on shapes that don't fit, TypeError on mixed dtypes or devices.
    """
    weight, shift, eps = split_norm(norm)
    x, u, v, bias, residual, weight, shift, dense = autocast(
        x, u, v, bias, residual, weight, shift, dense
    )
    norm = join_norm(weight, shift, eps)
    _check(x, u, v, bias, activation, residual, norm, groups, dense)
    if x.is_cuda and not torch.compiler.is_exporting():
        return _op(x, u, v, bias, activation, residual, weight, shift, eps, groups, exact, dense)
    return low_rank_linear_ref(x, u, v, bias, activation, residual, norm, groups)


@torch.library.custom_op("lada::low_rank_linear", mutates_args=())
def _op(
    x: Tensor,
    u: Tensor,
    v: Tensor,
    bias: Tensor | None,
    activation: str,
    residual: Tensor | None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 0.0,
    groups: int = 1,
    exact: bool = False,
    dense: Tensor | None = None,
) -> Tensor:
    norm = join_norm(norm_weight, norm_bias, eps)
    return low_rank_linear_ref(x, u, v, bias, activation, residual, norm, groups)


@_op.register_kernel("cuda")
@on_its_gpu
def _(
    x,
    u,
    v,
    bias,
    activation,
    residual,
    norm_weight=None,
    norm_bias=None,
    eps=0.0,
    groups=1,
    exact=False,
    dense=None,
):
    norm = join_norm(norm_weight, norm_bias, eps)
    if not kernels_run("low_rank_linear", x):
        return low_rank_linear_ref(x, u, v, bias, activation, residual, norm, groups)
    from lada_kernels.low_rank_linear import low_rank_linear_fwd

    y = low_rank_linear_fwd(
        rows(x),
        u.contiguous(),
        v.contiguous(),
        contiguous(bias),
        None if residual is None else rows(residual),
        activation,
        None if norm is None else (norm.weight.contiguous(), norm.bias.contiguous(), eps),
        groups,
        exact,
        dense,
    )
    return y.view(*x.shape[:-1], u.shape[0])


@_op.register_fake
def _(
    x,
    u,
    v,
    bias,
    activation,
    residual,
    norm_weight=None,
    norm_bias=None,
    eps=0.0,
    groups=1,
    exact=False,
    dense=None,
):
    return x.new_empty(*x.shape[:-1], u.shape[0])


def _setup_context(ctx, inputs, output):
    x, u, v, bias, ctx.activation, residual, weight, shift, ctx.eps, ctx.groups, *_ = inputs
    # of the residual, only a norm's gradient depends
    ctx.save_for_backward(x, u, v, bias, None if weight is None else residual, weight, shift)


def _backward(ctx, grad):
    x, u, v, bias, residual, weight, shift = ctx.saved_tensors
    norm = join_norm(weight, shift, ctx.eps)
    x2, grad2 = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
    residual2 = None if residual is None else residual.reshape(grad2.shape)
    t = F.linear(x2, v)
    z = grouped_linear(t, u, bias, ctx.groups) if needs_z(ctx.activation, norm) else None
    dz, d_residual, d_weight, d_shift = epilogue_backward(grad2, z, ctx.activation, residual2, norm)
    # a view would share the memory of the incoming gradient
    d_residual = grad if norm is None else d_residual.view_as(grad)
    dz_runs, u_runs, t_runs = dz.chunk(ctx.groups, 1), u.chunk(ctx.groups), t.chunk(ctx.groups, 1)
    dt = torch.cat([a @ b for a, b in zip(dz_runs, u_runs, strict=True)], 1)
    return (
        (dt @ v).view_as(x),
        torch.cat([a.T @ b for a, b in zip(dz_runs, t_runs, strict=True)]),
        dt.T @ x2,
        None if bias is None else dz.sum(0),
        None,
        d_residual if ctx.needs_input_grad[5] else None,
        d_weight,
        d_shift,
        *(None,) * 4,
    )


_op.register_autograd(_backward, setup_context=_setup_context)


def _check(x, u, v, bias, activation, residual, norm, groups, dense):
    op = "low_rank_linear"
    if groups < 1:
        raise ValueError(f"{op}: groups {groups}; expected 1 or more")
    fits = u.ndim == v.ndim == 2 and v.shape[0] == groups * u.shape[1]
    if not fits or u.shape[0] % groups:
        raise ValueError(
            f"{op}: u {tuple(u.shape)} and v {tuple(v.shape)} in {groups} groups; "
            "expected u (out, rank) and v (groups * rank, in), out a multiple of groups"
        )
    check_x(op, x, v.shape[1])
    check_operands(op, x, u=u, v=v)
    check_epilogue(op, x, u.shape[0], bias, activation, residual, norm, dense)
