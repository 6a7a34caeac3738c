"""Block-sparse linear: ``y = LN(act(x S^T + bias) + residual)`` with S (out, in) in BSR."""

from itertools import pairwise

import torch
from torch import Tensor

from ..formats.bsr import bsr_to_dense, gather_blocks, panel_major
from .checks import check_epilogue, check_operands
from .dispatch import (
    autocast,
    contiguous,
    kernels_run,
    needs_grad,
    on_its_gpu,
    rows,
    runs_reference,
    warn_once,
)
from .epilogue import epilogue_backward, join_norm, kernel_epilogue, split_norm
from .reference import Norm, block_sparse_linear_ref, epilogue_ref


def block_sparse_linear(
    x: Tensor,
    crow_indices: Tensor,
    col_indices: Tensor,
    values: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str = "none",
    residual: Tensor | None = None,
    norm: Norm | None = None,
    order: Tensor | None = None,
    exact_gelu: bool = False,
    dense: Tensor | None = None,
) -> Tensor:
    """``LN(act(x S^T + bias) + residual)`` (..., out), in time proportional to the stored blocks.

    x (..., in); crow_indices (out / block_rows + 1,) and col_indices (nnz,) int32; values (nnz,
    block_rows, block_cols); bias (out,); residual (..., out). Dtypes, activation, norm, exact_gelu,
    autograd and autocast as in `low_rank_linear`. The indices must be valid (`lada_ops.Bsr` checks
    them once), and x as wide as S, which its indices and values do not tell; values laid out by
    `lada_ops.formats.panel_major` are read without a copy.

    order: `lada_ops.Bsr.order`, only where `lada_ops.Bsr.whole_packs` is true: then the kernel
        needs no masks, and starts with the heaviest block rows.
    dense: S as a dense weight, if the caller keeps it, as in `low_rank_linear`.

    Raises ValueError on shapes that don't fit, TypeError on mixed dtypes or devices.
    """
    weight, shift, eps = split_norm(norm)
    x, values, bias, residual, weight, shift, dense = autocast(
        x, values, bias, residual, weight, shift, dense
    )
    norm = join_norm(weight, shift, eps)
    _check(x, crow_indices, col_indices, values, bias, activation, residual, norm, order, dense)
    args = x, crow_indices, col_indices, values, bias, activation, residual
    if runs_reference():
        return block_sparse_linear_ref(*args, norm)
    trained = needs_grad(x, values, bias, residual, weight, shift)
    if not x.is_cpu or torch.compiler.is_compiling() or trained:
        return _op(*args, weight, shift, eps, order, exact_gelu, dense)
    return _forward_cpu(*args, norm)


def _forward_cpu(x, crow_indices, col_indices, values, bias, activation, residual, norm):
    x2 = x.reshape(-1, x.shape[-1])
    out_features = (crow_indices.numel() - 1) * values.shape[1]
    z = x.new_zeros(x2.shape[0], out_features) if bias is None else bias.repeat(x2.shape[0], 1)
    add_block_rows_(z, x2, crow_indices, col_indices, values)
    return epilogue_ref(z.view(*x.shape[:-1], out_features), activation, residual, norm)


def add_block_rows_(
    z: Tensor, x: Tensor, crow_indices: Tensor, col_indices: Tensor, values: Tensor
) -> None:
    """``z (M, out) += x (M, in) S^T`` in place: a gather and a dense product per block row."""
    _, height, width = values.shape
    x_blocks = x.reshape(x.shape[0], x.shape[1] // width, width)
    panels = values.transpose(1, 2).reshape(-1, height)  # a view if values is panel-major
    for row, (start, stop) in enumerate(pairwise(crow_indices.tolist())):
        if start == stop:
            continue
        gathered = x_blocks.index_select(1, col_indices[start:stop])
        z_row = z[:, row * height : (row + 1) * height]
        panel = panels[start * width : stop * width]
        torch.addmm(z_row, gathered.view(-1, panel.shape[0]), panel, out=z_row)


@torch.library.custom_op("lada::block_sparse_linear", mutates_args=())
@on_its_gpu
def _op(
    x: Tensor,
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
    exact_gelu: bool = False,
    dense: Tensor | None = None,
) -> Tensor:
    norm = join_norm(norm_weight, norm_bias, eps)
    if not blocks_run("block_sparse_linear", x, *values.shape[1:]):
        compute = block_sparse_linear_ref if x.is_cuda else _forward_cpu
        return compute(x, crow_indices, col_indices, values, bias, activation, residual, norm)
    from lada_kernels.block_sparse_linear import block_sparse_linear_fwd

    y = block_sparse_linear_fwd(
        rows(x),
        *(crow_indices.contiguous(), col_indices.contiguous(), values),
        kernel_epilogue(bias, activation, residual, norm, exact_gelu),
        order=contiguous(order),
        dense=dense,
    )
    return y.view(*x.shape[:-1], y.shape[-1])


@_op.register_fake
def _(x, crow_indices, col_indices, values, *args, **kwargs):
    return x.new_empty(*x.shape[:-1], (crow_indices.numel() - 1) * values.shape[1])


def _setup_context(ctx, inputs, output):
    x, crow, col, values, bias, ctx.activation, residual, weight, shift, ctx.eps, order, *_ = inputs
    # the residual bears on the gradients through a norm alone
    residual = None if weight is None else residual
    ctx.save_for_backward(x, crow, col, values, bias, residual, weight, shift, order)


def _backward(ctx, grad):
    x, crow, col, values, bias, residual, weight, shift, order = ctx.saved_tensors
    dz, d_residual, d_weight, d_shift = epilogue_backward(
        *(grad, lambda: _op(x, crow, col, values, bias, "none", None, order=order)),
        *(ctx.activation, residual, join_norm(weight, shift, ctx.eps)),
    )
    x2, dz = x.reshape(-1, x.shape[-1]), dz.reshape(-1, dz.shape[-1])
    needs_dx, _, _, needs_dvalues, _, _, needs_dresidual, *_ = ctx.needs_input_grad
    return (
        dx_op(dz, crow, col, values, x.shape[-1]).view_as(x) if needs_dx else None,
        *(None, None),
        dvalues_op(dz, x2, crow, col, *values.shape[1:]) if needs_dvalues else None,
        None if bias is None else dz.sum(0),
        None,
        d_residual if needs_dresidual else None,
        *(d_weight, d_shift),
        *(None,) * 4,
    )


_op.register_autograd(_backward, setup_context=_setup_context)


@torch.library.custom_op("lada::block_sparse_linear_dx", mutates_args=())
@on_its_gpu
def dx_op(
    dy: Tensor, crow_indices: Tensor, col_indices: Tensor, values: Tensor, in_features: int
) -> Tensor:
    """``dy (tokens, out) @ S``, the gradient of x (tokens, in)."""
    if not blocks_run("block_sparse_linear", dy, *values.shape[1:]):
        return dy @ bsr_to_dense(crow_indices, col_indices, values, in_features)
    from lada_kernels.block_sparse_linear_bwd import block_sparse_linear_dx

    indices = crow_indices.contiguous(), col_indices.contiguous()
    return block_sparse_linear_dx(rows(dy), *indices, values, in_features)


@dx_op.register_fake
def _(dy, crow_indices, col_indices, values, in_features):
    return dy.new_empty(dy.shape[0], in_features)


def _dx_backward(ctx, grad):
    dy, crow, col, values = ctx.saved_tensors
    return (
        _op(grad, crow, col, values, None, "none", None),
        None,
        None,
        dvalues_op(dy, grad, crow, col, *values.shape[1:]),
        None,
    )


dx_op.register_autograd(
    _dx_backward, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs[:4])
)


@torch.library.custom_op("lada::block_sparse_linear_dvalues", mutates_args=())
@on_its_gpu
def dvalues_op(
    dy: Tensor,
    x: Tensor,
    crow_indices: Tensor,
    col_indices: Tensor,
    block_rows: int,
    block_cols: int,
) -> Tensor:
    """The stored blocks of ``dy.T @ x``, the gradient of values, panel-major."""
    block = block_rows, block_cols
    if not blocks_run("block_sparse_linear", dy, *block):
        return panel_major(gather_blocks(dy.T @ x, crow_indices, col_indices, block))
    from lada_kernels.block_sparse_linear_bwd import block_sparse_linear_dvalues

    indices = crow_indices.contiguous(), col_indices.contiguous()
    return block_sparse_linear_dvalues(rows(dy), rows(x), *indices, *block)


@dvalues_op.register_fake
def _(dy, x, crow_indices, col_indices, block_rows, block_cols):
    return dy.new_empty(col_indices.numel(), block_cols, block_rows).transpose(1, 2)


def _dvalues_backward(ctx, grad):
    dy, x, crow, col = ctx.saved_tensors
    return (
        _op(x, crow, col, grad, None, "none", None),
        dx_op(dy, crow, col, grad, x.shape[1]),
        *(None,) * 4,
    )


dvalues_op.register_autograd(
    _dvalues_backward, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs[:4])
)


def blocks_run(op: str, x: Tensor, block_rows: int, block_cols: int) -> bool:
    """True if the Triton kernels run x and blocks of this shape; warns once of those they lack."""
    if not kernels_run(op, x):
        return False
    from lada_kernels.block_sparse_linear import supports_block

    runs = supports_block(block_rows, block_cols)
    if not runs:
        warn_once(
            f"{op}: runs in plain torch: blocks of {block_rows}x{block_cols}; "
            "expected 16, 32, 64 or 128 rows and columns"
        )
    return runs


def check_bsr_operands(
    op: str,
    x: Tensor,
    crow_indices: Tensor,
    col_indices: Tensor,
    values: Tensor,
    order: Tensor | None,
) -> None:
    """Raise ValueError or TypeError unless the BSR tensors fit x; values of indices aren't read."""
    if values.ndim != 3 or 0 in values.shape[1:]:
        raise ValueError(
            f"{op}: values {tuple(values.shape)}; expected (nnz, block_rows, block_cols)"
        )
    if x.ndim == 0 or x.shape[-1] % values.shape[2]:
        raise ValueError(
            f"{op}: x {tuple(x.shape)}; "
            f"expected (..., in) with in a multiple of block_cols {values.shape[2]}"
        )
    named = {"crow_indices": crow_indices, "col_indices": col_indices, "order": order}
    for name, t in named.items():
        if t is None:
            continue
        if t.dtype != torch.int32 or t.ndim != 1 or t.device != x.device:
            raise TypeError(
                f"{op}: {name} {tuple(t.shape)} {t.dtype} on {t.device}; "
                f"expected 1-D torch.int32 on {x.device}, as x"
            )
    if crow_indices.numel() < 2 or col_indices.numel() != values.shape[0]:
        raise ValueError(
            f"{op}: crow_indices {tuple(crow_indices.shape)}, col_indices "
            f"{tuple(col_indices.shape)}, values {tuple(values.shape)}; "
            "expected (block rows + 1,), (nnz,), (nnz, block_rows, block_cols)"
        )
    if order is not None and order.numel() != crow_indices.numel() - 1:
        raise ValueError(
            f"{op}: order {tuple(order.shape)}; expected ({crow_indices.numel() - 1},), block rows"
        )


def _check(x, crow_indices, col_indices, values, bias, activation, residual, norm, order, dense):
    op = "block_sparse_linear"
    check_bsr_operands(op, x, crow_indices, col_indices, values, order)
    check_operands(op, x, values=values)
    out_features = (crow_indices.numel() - 1) * values.shape[1]
    check_epilogue(op, x, out_features, bias, activation, residual, norm, dense)
