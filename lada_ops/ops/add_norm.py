"""Epilogue of a product that torch computes: ``y = LN(act(x) + residual)``."""

import torch
from torch import Tensor

from .checks import check_epilogue
from .dispatch import autocast, kernels_run, on_its_gpu, rows, runs_reference
from .epilogue import epilogue_backward, join_norm, kernel_epilogue, needs_product, split_norm
from .reference import Norm, epilogue_ref


def add_norm(
    x: Tensor,
    *,
    activation: str = "none",
    residual: Tensor | None = None,
    norm: Norm | None = None,
) -> Tensor:
    """``LN(act(x) + residual)`` (..., features), on CUDA in one launch; x itself if there is none.

    x and residual (..., features); dtypes, activation, norm, autograd and autocast as in
    `low_rank_linear`, but gelu is erf's in every dtype.

    Raises ValueError on shapes that don't fit, TypeError on mixed dtypes or devices.
    """
    weight, shift, eps = split_norm(norm)
    x, residual, weight, shift = autocast(x, residual, weight, shift)
    norm = join_norm(weight, shift, eps)
    if x.ndim == 0:
        raise ValueError("add_norm: x (); expected (..., features)")
    check_epilogue("add_norm", x, x.shape[-1], None, activation, residual, norm)
    is_empty = activation == "none" and residual is None and norm is None
    if not is_empty and x.is_cuda and not runs_reference():
        return _op(x, activation, residual, weight, shift, eps)
    return epilogue_ref(x, activation, residual, norm)


@torch.library.custom_op("lada::add_norm", mutates_args=())
@on_its_gpu
def _op(
    x: Tensor,
    activation: str,
    residual: Tensor | None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 0.0,
) -> Tensor:
    norm = join_norm(norm_weight, norm_bias, eps)
    if not kernels_run("add_norm", x):
        return epilogue_ref(x, activation, residual, norm)
    from lada_kernels.add_norm import add_norm_fwd

    epilogue = kernel_epilogue(None, activation, residual, norm)
    return add_norm_fwd(rows(x), epilogue).view(x.shape)


@_op.register_fake
def _(x, *args, **kwargs):
    return x.new_empty(x.shape)


def _setup_context(ctx, inputs, output):
    x, ctx.activation, residual, weight, shift, ctx.eps = inputs
    x = x if needs_product(ctx.activation, join_norm(weight, shift, ctx.eps)) else None
    # the residual bears on the gradients through a norm alone
    ctx.save_for_backward(x, None if weight is None else residual, weight, shift)


def _backward(ctx, grad):
    x, residual, weight, shift = ctx.saved_tensors
    norm = join_norm(weight, shift, ctx.eps)
    dx, d_residual, d_weight, d_shift = epilogue_backward(
        grad, lambda: x, ctx.activation, residual, norm
    )
    d_residual = d_residual if ctx.needs_input_grad[2] else None
    return dx, None, d_residual, d_weight, d_shift, None


_op.register_autograd(_backward, setup_context=_setup_context)
