"""Block-sparse linear: ``y = act(x S^T + bias) + residual`` with S (out, in) in BSR."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from ..formats import block_row_indices, bsr_to_dense, split_blocks
from ..reference import block_sparse_linear_ref, epilogue_ref
from .epilogue import (
    KERNEL_DTYPES,
    activation_backward,
    autocast,
    check_epilogue,
    check_operands,
    needs_grad,
    rows,
)


def block_sparse_linear(
    x: Tensor,
    crow_indices: Tensor,
    col_indices: Tensor,
    values: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str = "none",
    residual: Tensor | None = None,
) -> Tensor:
    """``act(x S^T + bias) + residual`` (..., out), in time proportional to the stored blocks.

    x (..., in); crow_indices (out / block_rows + 1,) and col_indices (nnz,) int32; values (nnz,
    block_rows, block_cols); bias (out,); residual (..., out). Dtypes, activation, autograd and
    autocast as in `low_rank_linear`. The indices must be valid (`lada_ops.Bsr` checks them once),
    and x as wide as S, which its indices and values do not tell;
    values laid out by `lada_ops.formats.panel_major` are read without a copy.

    Raises ValueError on shapes that don't fit, TypeError on mixed dtypes or devices.
    """
    x, values, bias, residual = autocast(x, values, bias, residual)
    _check(x, crow_indices, col_indices, values, bias, activation, residual)
    args = x, crow_indices, col_indices, values, bias, activation, residual
    if torch.compiler.is_exporting():
        return block_sparse_linear_ref(*args)
    if not x.is_cpu or torch.compiler.is_compiling() or needs_grad(x, values, bias, residual):
        return _op(*args)
    return _forward_cpu(*args)


def _forward_cpu(x, crow_indices, col_indices, values, bias, activation, residual):
    x2 = x.reshape(-1, x.shape[-1])
    out_features = (crow_indices.numel() - 1) * values.shape[1]
    z = x.new_zeros(x2.shape[0], out_features) if bias is None else bias.repeat(x2.shape[0], 1)
    add_block_rows_(z, x2, crow_indices, col_indices, values)
    return epilogue_ref(z.view(*x.shape[:-1], out_features), activation, residual)


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
def _op(
    x: Tensor,
    crow_indices: Tensor,
    col_indices: Tensor,
    values: Tensor,
    bias: Tensor | None,
    activation: str,
    residual: Tensor | None,
) -> Tensor:
    return _forward_cpu(x, crow_indices, col_indices, values, bias, activation, residual)


@_op.register_kernel("cuda")
def _(x, crow_indices, col_indices, values, bias, activation, residual):
    from lada_kernels.block_sparse_linear import block_sparse_linear_fwd, supports_block

    if x.dtype not in KERNEL_DTYPES or not supports_block(*values.shape[1:]):
        return block_sparse_linear_ref(
            x, crow_indices, col_indices, values, bias, activation, residual
        )
    y = block_sparse_linear_fwd(
        rows(x),
        crow_indices.contiguous(),
        col_indices.contiguous(),
        values,
        None if bias is None else bias.contiguous(),
        None if residual is None else rows(residual),
        activation,
    )
    return y.view(*x.shape[:-1], y.shape[-1])


@_op.register_fake
def _(x, crow_indices, col_indices, values, bias, activation, residual):
    return x.new_empty(*x.shape[:-1], (crow_indices.numel() - 1) * values.shape[1])


def _setup_context(ctx, inputs, output):
    x, crow_indices, col_indices, values, bias, ctx.activation, _ = inputs
    ctx.save_for_backward(x, crow_indices, col_indices, values, bias)


def _backward(ctx, grad):
    x, crow_indices, col_indices, values, bias = ctx.saved_tensors
    x2 = x.reshape(-1, x.shape[-1])
    # dense products: the gradient of S is gathered from that of the whole weight
    weight = bsr_to_dense(crow_indices, col_indices, values, x.shape[-1])
    dz = grad.reshape(-1, grad.shape[-1])
    if ctx.activation != "none":
        dz = activation_backward(dz, F.linear(x2, weight, bias), ctx.activation)
    return (
        (dz @ weight).view_as(x),
        None,
        None,
        gather_blocks(dz.T @ x2, crow_indices, col_indices, values),
        None if bias is None else dz.sum(0),
        None,
        grad if ctx.needs_input_grad[6] else None,
    )


_op.register_autograd(_backward, setup_context=_setup_context)


def gather_blocks(
    dense: Tensor, crow_indices: Tensor, col_indices: Tensor, values: Tensor
) -> Tensor:
    """The blocks of ``dense (out, in)`` that the indices name, shaped as `values`."""
    nnz, height, width = values.shape
    row_indices = block_row_indices(crow_indices, nnz)
    return split_blocks(dense, (height, width))[row_indices, col_indices.long()]


def check_bsr_operands(
    op: str, x: Tensor, crow_indices: Tensor, col_indices: Tensor, values: Tensor
) -> None:
    """Raise unless the BSR tensors fit x and each other; the values of the indices aren't read."""
    if values.ndim != 3 or 0 in values.shape[1:]:
        raise ValueError(
            f"{op}: values {tuple(values.shape)}; expected (nnz, block_rows, block_cols)"
        )
    if x.ndim == 0 or x.shape[-1] % values.shape[2]:
        raise ValueError(
            f"{op}: x {tuple(x.shape)}; "
            f"expected (..., in) with in a multiple of block_cols {values.shape[2]}"
        )
    for name, t in (("crow_indices", crow_indices), ("col_indices", col_indices)):
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


def _check(x, crow_indices, col_indices, values, bias, activation, residual):
    op = "block_sparse_linear"
    check_bsr_operands(op, x, crow_indices, col_indices, values)
    check_operands(op, x, values=values, bias=bias, residual=residual)
    out_features = (crow_indices.numel() - 1) * values.shape[1]
    check_epilogue(op, x, out_features, bias, activation, residual)
