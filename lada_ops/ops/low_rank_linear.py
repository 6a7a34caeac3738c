"""Low-rank linear: ``y = LN(act(x v^T u^T + bias) + residual)``."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import check_epilogue, check_operands, check_x
from .dispatch import autocast, kernels_run, on_its_gpu, rows, runs_reference
from .epilogue import epilogue_backward, join_norm, kernel_epilogue, split_norm
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
    norm: LayerNorm over the output, applied last.
    groups: pairs of factors that share x, such as 3 for query, key and value. The rows of u and of
        v are in as many equal groups; group g of the output columns is computed by group g of each.
    dense: ``u @ v``, if the caller keeps it: used on CUDA where a dense product is faster. It gets
        no gradient.

    Raises ValueError on shapes that don't fit, TypeError on mixed dtypes or devices.
    """
    weight, shift, eps = split_norm(norm)
    x, u, v, bias, residual, weight, shift, dense = autocast(
        x, u, v, bias, residual, weight, shift, dense
    )
    norm = join_norm(weight, shift, eps)
    _check(x, u, v, bias, activation, residual, norm, groups, dense)
    args = x, u, v, bias, activation, residual
    if x.is_cuda and not runs_reference():
        return _op(*args, weight, shift, eps, groups, exact_gelu, dense)
    return low_rank_linear_ref(*args, norm, groups=groups)


@torch.library.custom_op("lada::low_rank_linear", mutates_args=())
@on_its_gpu
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
    if not kernels_run("low_rank_linear", x):
        return low_rank_linear_ref(x, u, v, bias, activation, residual, norm, groups=groups)
    from lada_kernels.low_rank_linear import low_rank_linear_fwd

    epilogue = kernel_epilogue(bias, activation, residual, norm, exact_gelu)
    factors = u.contiguous(), v.contiguous()
    y = low_rank_linear_fwd(rows(x), *factors, epilogue, groups=groups, dense=dense)
    return y.view(*x.shape[:-1], y.shape[-1])


@_op.register_fake
def _(x, u, *args, **kwargs):
    return x.new_empty(*x.shape[:-1], u.shape[0])


def _setup_context(ctx, inputs, output):
    x, u, v, bias, ctx.activation, residual, weight, shift, ctx.eps, ctx.groups, *_ = inputs
    # the residual bears on the gradients through a norm alone
    ctx.save_for_backward(x, u, v, bias, None if weight is None else residual, weight, shift)


def _backward(ctx, grad):
    x, u, v, bias, residual, weight, shift = ctx.saved_tensors
    x2 = x.reshape(-1, x.shape[-1])
    t = F.linear(x2, v)
    dz, d_residual, d_weight, d_shift = epilogue_backward(
        *(grad, lambda: grouped_linear(t, u, bias, ctx.groups), ctx.activation),
        *(residual, join_norm(weight, shift, ctx.eps)),
    )
    dz = dz.reshape(-1, dz.shape[-1])
    dx, dt = dx_op(dz, u, v, ctx.groups)
    du = dv = dbias = None
    if any(ctx.needs_input_grad[1:4]):
        du, dv, dbias = dfactors_op(dz, x2, t, dt, ctx.groups)
    return (
        *(dx.view_as(x), du, dv),
        None if bias is None else dbias,
        None,
        d_residual if ctx.needs_input_grad[5] else None,
        *(d_weight, d_shift),
        *(None,) * 4,
    )


_op.register_autograd(_backward, setup_context=_setup_context)


@torch.library.custom_op("lada::low_rank_linear_dx", mutates_args=())
@on_its_gpu
def dx_op(dy: Tensor, u: Tensor, v: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """The gradients of x (tokens, in) and of ``t = x v^T`` (tokens, groups * rank)."""
    if not kernels_run("low_rank_linear", dy):
        dt = _grouped_dt(dy, u, groups)
        return dt @ v, dt
    from lada_kernels.low_rank_linear_bwd import low_rank_linear_dx

    return low_rank_linear_dx(rows(dy), u.contiguous(), v.contiguous(), groups)


@dx_op.register_fake
def _(dy, u, v, groups):
    return dy.new_empty(dy.shape[0], v.shape[1]), dy.new_empty(dy.shape[0], v.shape[0])


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
@on_its_gpu
def dfactors_op(
    dy: Tensor, x: Tensor, t: Tensor, dt: Tensor, groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of u (out, rank), v (groups * rank, in) and bias (out,)."""
    if not kernels_run("low_rank_linear", dy):
        pairs = zip(dy.chunk(groups, 1), t.chunk(groups, 1), strict=True)
        return torch.cat([a.T @ b for a, b in pairs]), dt.T @ x, dy.sum(0)
    from lada_kernels.low_rank_linear_bwd import low_rank_linear_dfactors

    return low_rank_linear_dfactors(rows(dy), rows(x), rows(t), rows(dt), groups)


@dfactors_op.register_fake
def _(dy, x, t, dt, groups):
    rank = t.shape[1] // groups
    shapes = (dy.shape[1], rank), (t.shape[1], x.shape[1]), (dy.shape[1],)
    return tuple(dy.new_empty(shape) for shape in shapes)


def _dfactors_backward(ctx, d_du, d_dv, d_dbias):
    dy, x, t, dt = ctx.saved_tensors
    d_dy = grouped_linear(t, d_du, d_dbias, ctx.groups)
    return d_dy, dt @ d_dv, _grouped_dt(dy, d_du, ctx.groups), F.linear(x, d_dv), None


def _dfactors_setup_context(ctx, inputs, output):
    *tensors, ctx.groups = inputs
    ctx.save_for_backward(*tensors)


dfactors_op.register_autograd(_dfactors_backward, setup_context=_dfactors_setup_context)


def _grouped_dt(dy, u, groups):
    """Gradient of ``t = x v^T``: column group g of dy times row group g of u, side by side."""
    pairs = zip(dy.chunk(groups, 1), u.chunk(groups), strict=True)
    return torch.cat([a @ b for a, b in pairs], 1)


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
