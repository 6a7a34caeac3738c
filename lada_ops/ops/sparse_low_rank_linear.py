"""Sparse + low-rank linear: ``y = act(x v^T u^T + x S^T + bias) + residual``, S in BSR."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..formats import bsr_to_dense
from ..reference import epilogue_ref, sparse_low_rank_linear_ref
from .block_sparse_linear import add_block_rows_, check_bsr_operands, gather_blocks
from .epilogue import (
    KERNEL_DTYPES,
    activation_backward,
    autocast,
    check_epilogue,
    check_operands,
    check_x,
    needs_grad,
    rows,
)


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
) -> Tensor:
    """``act(x v^T u^T + x S^T + bias) + residual`` (..., out), into one accumulator.

    x (..., in), u (out, rank), v (rank, in); crow_indices, col_indices and values as in
    `block_sparse_linear`; dtypes, activation, autograd and autocast as in `low_rank_linear`.

    Raises ValueError on shapes that don't fit, TypeError on mixed dtypes or devices.
    """
    x, u, v, values, bias, residual = autocast(x, u, v, values, bias, residual)
    _check(x, u, v, crow_indices, col_indices, values, bias, activation, residual)
    args = x, u, v, crow_indices, col_indices, values, bias, activation, residual
    if torch.compiler.is_exporting():
        return sparse_low_rank_linear_ref(*args)
    if not x.is_cpu or torch.compiler.is_compiling() or needs_grad(x, u, v, values, bias, residual):
        return _op(*args)
    return _forward_cpu(*args)


def _forward_cpu(x, u, v, crow_indices, col_indices, values, bias, activation, residual):
    x2 = x.reshape(-1, x.shape[-1])
    z = F.linear(F.linear(x2, v), u, bias)
    add_block_rows_(z, x2, crow_indices, col_indices, values)
    return epilogue_ref(z.view(*x.shape[:-1], u.shape[0]), activation, residual)


@torch.library.custom_op("lada::sparse_low_rank_linear", mutates_args=())
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
) -> Tensor:
    return _forward_cpu(x, u, v, crow_indices, col_indices, values, bias, activation, residual)


@_op.register_kernel("cuda")
def _(x, u, v, crow_indices, col_indices, values, bias, activation, residual):
    from lada_kernels.block_sparse_linear import supports_block
    from lada_kernels.sparse_low_rank_linear import sparse_low_rank_linear_fwd

    if x.dtype not in KERNEL_DTYPES or not supports_block(*values.shape[1:]):
        return sparse_low_rank_linear_ref(
            x, u, v, crow_indices, col_indices, values, bias, activation, residual
        )
    y = sparse_low_rank_linear_fwd(
        rows(x),
        u.contiguous(),
        v.contiguous(),
        crow_indices.contiguous(),
        col_indices.contiguous(),
        values,
        None if bias is None else bias.contiguous(),
        None if residual is None else rows(residual),
        activation,
    )
    return y.view(*x.shape[:-1], u.shape[0])


@_op.register_fake
def _(x, u, v, crow_indices, col_indices, values, bias, activation, residual):
    return x.new_empty(*x.shape[:-1], u.shape[0])


def _setup_context(ctx, inputs, output):
    x, u, v, crow_indices, col_indices, values, bias, ctx.activation, _ = inputs
    ctx.save_for_backward(x, u, v, crow_indices, col_indices, values, bias)


def _backward(ctx, grad):
    x, u, v, crow_indices, col_indices, values, bias = ctx.saved_tensors
    x2 = x.reshape(-1, x.shape[-1])
    sparse = bsr_to_dense(crow_indices, col_indices, values, x.shape[-1])
    t = F.linear(x2, v)
    dz = grad.reshape(-1, grad.shape[-1])
    if ctx.activation != "none":
        z = F.linear(t, u, bias) + F.linear(x2, sparse)
        dz = activation_backward(dz, z, ctx.activation)
    dt = dz @ u
    return (
        (dt @ v + dz @ sparse).view_as(x),
        dz.T @ t,
        dt.T @ x2,
        None,
        None,
        gather_blocks(dz.T @ x2, crow_indices, col_indices, values),
        None if bias is None else dz.sum(0),
        None,
        grad if ctx.needs_input_grad[8] else None,
    )


_op.register_autograd(_backward, setup_context=_setup_context)


def _check(x, u, v, crow_indices, col_indices, values, bias, activation, residual):
    op = "sparse_low_rank_linear"
    check_bsr_operands(op, x, crow_indices, col_indices, values)
    out_features = (crow_indices.numel() - 1) * values.shape[1]
    if u.ndim != 2 or v.ndim != 2 or u.shape != (out_features, v.shape[0]):
        raise ValueError(
            f"{op}: u {tuple(u.shape)}, v {tuple(v.shape)}; "
            f"expected u ({out_features}, rank) and v (rank, in), as the sparse part"
        )
    check_x(op, x, v.shape[1])
    check_operands(op, x, u=u, v=v, values=values, bias=bias, residual=residual)
    check_epilogue(op, x, out_features, bias, activation, residual)
