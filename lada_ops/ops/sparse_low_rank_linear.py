"""Sparse + low-rank linear: ``y = LN(act(x v^T u^T + x S^T + bias) + residual)``, S in BSR."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .block_sparse_linear import add_block_rows_, blocks_run, check_bsr_operands, dvalues_op
from .block_sparse_linear import dx_op as block_sparse_dx
from .checks import check_epilogue, check_operands, check_x
from .dispatch import autocast, contiguous, needs_grad, on_its_gpu, rows, runs_reference
from .epilogue import epilogue_backward, join_norm, kernel_epilogue, split_norm
from .low_rank_linear import dfactors_op
from .low_rank_linear import dx_op as low_rank_dx
from .reference import Norm, epilogue_ref, grouped_linear, sparse_low_rank_linear_ref


def sparse_low_rank_linear(
    x: Tensor,
    u: Tensor,
    v: Tensor,
    crow_indices: Tensor,
    col_indices: Tensor,
    values: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str = "none",
    residual: Tensor | None = None,
    norm: Norm | None = None,
    groups: int = 1,
    order: Tensor | None = None,
    exact_gelu: bool = False,
    dense: Tensor | None = None,
) -> Tensor:
    """``LN(act(x v^T u^T + x S^T + bias) + residual)`` (..., out), into one accumulator.

    x (..., in), u (out, rank), v (groups * rank, in); crow_indices, col_indices, values and order
    as in `block_sparse_linear`; dtypes, activation, norm, groups, exact_gelu, autograd and autocast
    as in `low_rank_linear`. A group has whole block rows.

    dense: ``u @ v + S``, if the caller keeps it, as in `low_rank_linear`.

    Raises ValueError on shapes that don't fit, TypeError on mixed dtypes or devices.
    """
    weight, shift, eps = split_norm(norm)
    x, u, v, values, bias, residual, weight, shift, dense = autocast(
        x, u, v, values, bias, residual, weight, shift, dense
    )
    norm = join_norm(weight, shift, eps)
    bsr = crow_indices, col_indices, values
    _check(x, u, v, bsr, bias, activation, residual, norm, groups, order, dense)
    args = x, u, v, *bsr, bias, activation, residual
    if runs_reference():
        return sparse_low_rank_linear_ref(*args, norm, groups=groups)
    trained = needs_grad(x, u, v, values, bias, residual, weight, shift)
    if not x.is_cpu or torch.compiler.is_compiling() or trained:
        return _op(*args, weight, shift, eps, order, groups, exact_gelu, dense)
    return _forward_cpu(*args, norm, groups)


def _forward_cpu(
    x, u, v, crow_indices, col_indices, values, bias, activation, residual, norm, groups
):
    x2 = x.reshape(-1, x.shape[-1])
    z = grouped_linear(F.linear(x2, v), u, bias, groups)
    add_block_rows_(z, x2, crow_indices, col_indices, values)
    return epilogue_ref(z.view(*x.shape[:-1], u.shape[0]), activation, residual, norm)


@torch.library.custom_op("lada::sparse_low_rank_linear", mutates_args=())
@on_its_gpu
def _op(
    x: Tensor,
    u: Tensor,
    v: Tensor,
    crow_indices: Tensor,
    col_indices: Tensor,
    values: Tensor,
    bias: Tensor | None,
    activation: str,
    residual: Tensor | None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 0.0,
    order: Tensor | None = None,
    groups: int = 1,
    exact_gelu: bool = False,
    dense: Tensor | None = None,
) -> Tensor:
    norm = join_norm(norm_weight, norm_bias, eps)
    if not blocks_run("sparse_low_rank_linear", x, *values.shape[1:]):
        compute = sparse_low_rank_linear_ref if x.is_cuda else _forward_cpu
        bsr = crow_indices, col_indices, values
        return compute(x, u, v, *bsr, bias, activation, residual, norm, groups=groups)
    from lada_kernels.sparse_low_rank_linear import sparse_low_rank_linear_fwd

    y = sparse_low_rank_linear_fwd(
        rows(x),
        *(u.contiguous(), v.contiguous()),
        *(crow_indices.contiguous(), col_indices.contiguous(), values),
        kernel_epilogue(bias, activation, residual, norm, exact_gelu),
        groups=groups,
        order=contiguous(order),
        dense=dense,
    )
    return y.view(*x.shape[:-1], y.shape[-1])


@_op.register_fake
def _(x, u, *args, **kwargs):
    return x.new_empty(*x.shape[:-1], u.shape[0])


def _setup_context(ctx, inputs, output):
    (x, u, v, crow, col, values, bias, ctx.activation, residual), last = inputs[:9], inputs[9:]
    weight, shift, ctx.eps, order, ctx.groups, *_ = last
    # the residual bears on the gradients through a norm alone
    residual = None if weight is None else residual
    ctx.save_for_backward(x, u, v, crow, col, values, bias, residual, weight, shift, order)


def _backward(ctx, grad):
    x, u, v, crow, col, values, bias, residual, weight, shift, order = ctx.saved_tensors
    bsr, groups = (crow, col, values), ctx.groups

    def product():
        return _op(x, u, v, *bsr, bias, "none", None, groups=groups, order=order)

    dz, d_residual, d_weight, d_shift = epilogue_backward(
        *(grad, product, ctx.activation),
        *(residual, join_norm(weight, shift, ctx.eps)),
    )
    x2, dz = x.reshape(-1, x.shape[-1]), dz.reshape(-1, dz.shape[-1])
    dx, dt = low_rank_dx(dz, u, v, groups)
    dx = dx + block_sparse_dx(dz, *bsr, x.shape[-1])
    du, dv, dbias = dfactors_op(dz, x2, F.linear(x2, v), dt, groups)
    return (
        *(dx.view_as(x), du, dv, None, None),
        dvalues_op(dz, x2, crow, col, *values.shape[1:]),
        None if bias is None else dbias,
        None,
        d_residual if ctx.needs_input_grad[8] else None,
        *(d_weight, d_shift),
        *(None,) * 5,
    )


_op.register_autograd(_backward, setup_context=_setup_context)


def _check(
    x: Tensor,
    u: Tensor,
    v: Tensor,
    bsr: tuple[Tensor, Tensor, Tensor],
    bias: Tensor | None,
    activation: str,
    residual: Tensor | None,
    norm: Norm | None,
    groups: int,
    order: Tensor | None,
    dense: Tensor | None,
) -> None:
    crow_indices, _, values = bsr
    op = "sparse_low_rank_linear"
    check_bsr_operands(op, x, *bsr, order)
    block_rows = crow_indices.numel() - 1
    out_features = block_rows * values.shape[1]
    if groups < 1 or block_rows % groups:
        raise ValueError(
            f"{op}: groups {groups}; expected a number that {block_rows} block rows divide into"
        )
    fits = u.ndim == v.ndim == 2 and v.shape[0] == groups * u.shape[1]
    if not fits or u.shape[0] != out_features:
        raise ValueError(
            f"{op}: u {tuple(u.shape)} and v {tuple(v.shape)} in {groups} groups; expected u "
            f"({out_features}, rank) and v (groups * rank, in), as the sparse part"
        )
    check_x(op, x, v.shape[1])
    check_operands(op, x, u=u, v=v, values=values)
    check_epilogue(op, x, out_features, bias, activation, residual, norm, dense)
