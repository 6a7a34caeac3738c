"""Low-rank linear: ``y = LN(act(x v^T u^T + bias) + residual)``."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .epilogue import (
    autocast,
    check_epilogue,
    check_operands,
    check_x,
    epilogue_backward,
    join_norm,
    kernel_epilogue,
    kernels_run,
    needs_z,
    on_its_gpu,
    rows,
    split_norm,
    wants_plain,
)
from .reference import Norm, grouped_linear, low_rank_linear_ref


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
    exact_gelu: bool = False,
    dense: Tensor | None = None,
) -> Tensor:
    """``LN(act(x v^T u^T + bias) + residual)`` (..., out), without forming ``u @ v``.

    x (..., in), u (out, rank), v (groups * rank, in), bias (out,), residual (..., out); fp32, fp16
    or bf16 on CUDA through a Triton kernel, any floating dtype elsewhere. Differentiable; follows
    autocast as `F.linear` does.

    activation: none, relu, gelu, gelu_tanh, silu or tanh. In fp16 and bf16 on CUDA, gelu is a
        polynomial within 2e-4 of erf's; exact_gelu=True asks for erf's there too (3e-7, slower).
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
    args = x, u, v, bias, activation, residual
    if x.is_cuda and not wants_plain():
        return _op(*args, weight, shift, eps, groups, exact_gelu, dense)
    return low_rank_linear_ref(*args, norm, groups)


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
    exact_gelu: bool = False,
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
    exact_gelu=False,
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
        kernel_epilogue(bias, activation, residual, norm, exact_gelu),
        groups,
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
    exact_gelu=False,
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
    dx, dt = dx_op(dz, u, v, ctx.groups)
    du = dv = dbias = None
    if any(ctx.needs_input_grad[1:4]):
        du, dv, dbias = dfactors_op(dz, x2, t, dt, ctx.groups)
    return (
        dx.view_as(x),
        du,
        dv,
        None if bias is None else dbias,
        None,
        d_residual if ctx.needs_input_grad[5] else None,
        d_weight,
        d_shift,
        *(None,) * 4,
    )


_op.register_autograd(_backward, setup_context=_setup_context)


@torch.library.custom_op("lada::low_rank_linear_dx", mutates_args=())
def dx_op(dy: Tensor, u: Tensor, v: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """The gradients of x (tokens, in) and of ``t = x v^T`` (tokens, groups * rank)."""
    return _dx(dy, u, v, groups)


@dx_op.register_kernel("cuda")
@on_its_gpu
def _(dy, u, v, groups):
    if not kernels_run("low_rank_linear", dy):
        return _dx(dy, u, v, groups)
    from lada_kernels.low_rank_linear_bwd import low_rank_linear_dx

    return low_rank_linear_dx(rows(dy), u.contiguous(), v.contiguous(), groups)


@dx_op.register_fake
def _(dy, u, v, groups):
    return dy.new_empty(dy.shape[0], v.shape[1]), dy.new_empty(dy.shape[0], v.shape[0])


def _dx(dy, u, v, groups):
    dt = _by_runs(dy, u, groups)
    return dt @ v, dt


def _dx_setup_context(ctx, inputs, output):
    dy, u, v, ctx.groups = inputs
    ctx.save_for_backward(dy, u, v, output[1])


def _dx_backward(ctx, d_dx, d_dt):
    dy, u, v, dt = ctx.saved_tensors
    d_dt = d_dt + F.linear(d_dx, v)
    du, dv, _ = dfactors_op(dy, d_dx, d_dt, dt, ctx.groups)
    return grouped_linear(d_dt, u, None, ctx.groups), du, dv, None


dx_op.register_autograd(_dx_backward, setup_context=_dx_setup_context)


@torch.library.custom_op("lada::low_rank_linear_dfactors", mutates_args=())
def dfactors_op(
    dy: Tensor, x: Tensor, t: Tensor, dt: Tensor, groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of u (out, rank), v (groups * rank, in) and bias (out,)."""
    return _dfactors(dy, x, t, dt, groups)


@dfactors_op.register_kernel("cuda")
@on_its_gpu
def _(dy, x, t, dt, groups):
    if not kernels_run("low_rank_linear", dy):
        return _dfactors(dy, x, t, dt, groups)
    from lada_kernels.low_rank_linear_bwd import low_rank_linear_dfactors

    return low_rank_linear_dfactors(rows(dy), rows(x), rows(t), rows(dt), groups)


@dfactors_op.register_fake
def _(dy, x, t, dt, groups):
    rank = t.shape[1] // groups
    shapes = (dy.shape[1], rank), (t.shape[1], x.shape[1]), (dy.shape[1],)
    return tuple(dy.new_empty(shape) for shape in shapes)


def _dfactors(dy, x, t, dt, groups):
    pairs = zip(dy.chunk(groups, 1), t.chunk(groups, 1), strict=True)
    return torch.cat([a.T @ b for a, b in pairs]), dt.T @ x, dy.sum(0)


def _dfactors_backward(ctx, d_du, d_dv, d_dbias):
    dy, x, t, dt = ctx.saved_tensors
    d_dy = grouped_linear(t, d_du, d_dbias, ctx.groups)
    return d_dy, dt @ d_dv, _by_runs(dy, d_du, ctx.groups), F.linear(x, d_dv), None


def _dfactors_setup_context(ctx, inputs, output):
    *tensors, ctx.groups = inputs
    ctx.save_for_backward(*tensors)


dfactors_op.register_autograd(_dfactors_backward, setup_context=_dfactors_setup_context)


def _by_runs(dy, u, groups):
    """Run g of dy's columns times run g of u's rows, side by side: the way back from u."""
    runs = zip(dy.chunk(groups, 1), u.chunk(groups), strict=True)
    return torch.cat([a @ b for a, b in runs], 1)


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
