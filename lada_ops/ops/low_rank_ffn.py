"""Low-rank feed-forward: ``y = LN(act(x v1^T u1^T + bias1) v2^T u2^T + bias2 + residual)``."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import check_epilogue, check_operands, check_x
from .dispatch import autocast, kernels_run, on_its_gpu, rows, runs_reference
from .epilogue import activation_backward, epilogue_backward, join_norm, kernel_epilogue, split_norm
from .low_rank_linear import dfactors_op, dx_op
from .reference import Norm, epilogue_ref, low_rank_ffn_ref


def low_rank_ffn(
    x: Tensor,
    u1: Tensor,
    v1: Tensor,
    bias1: Tensor | None,
    u2: Tensor,
    v2: Tensor,
    bias2: Tensor | None,
    *,
    activation: str = "gelu",
    residual: Tensor | None = None,
    norm: Norm | None = None,
    exact_gelu: bool = False,
    dense: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """``LN(act(x v1^T u1^T + bias1) v2^T u2^T + bias2 + residual)`` (..., out).

    On CUDA, neither the weights nor, up to rank 128, the hidden features between the two linears
    are ever written. x (..., in), u1 (hidden, rank1), v1 (rank1, in), bias1 (hidden,), u2 (out,
    rank2), v2 (rank2, hidden), bias2 (out,), residual (..., out); dtypes, activation, norm,
    exact_gelu, autograd and autocast as in `low_rank_linear`.

    dense: ``u1 @ v1`` and ``u2 @ v2``, if the caller keeps them, as in `low_rank_linear`.

    Raises ValueError on shapes that don't fit, TypeError on mixed dtypes or devices.
    """
    weight, shift, eps = split_norm(norm)
    dense1, dense2 = (None, None) if dense is None else dense
    x, u1, v1, bias1, u2, v2, bias2, residual, weight, shift, dense1, dense2 = autocast(
        x, u1, v1, bias1, u2, v2, bias2, residual, weight, shift, dense1, dense2
    )
    norm = join_norm(weight, shift, eps)
    _check(x, u1, v1, bias1, u2, v2, bias2, activation, residual, norm, dense1, dense2)
    args = x, u1, v1, bias1, u2, v2, bias2, activation, residual
    if x.is_cuda and not runs_reference():
        return _op(*args, weight, shift, eps, exact_gelu, dense1, dense2)
    return low_rank_ffn_ref(*args, norm)


@torch.library.custom_op("lada::low_rank_ffn", mutates_args=())
@on_its_gpu
def _op(
    x: Tensor,
    u1: Tensor,
    v1: Tensor,
    bias1: Tensor | None,
    u2: Tensor,
    v2: Tensor,
    bias2: Tensor | None,
    activation: str,
    residual: Tensor | None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 0.0,
    exact_gelu: bool = False,
    dense1: Tensor | None = None,
    dense2: Tensor | None = None,
) -> Tensor:
    norm = join_norm(norm_weight, norm_bias, eps)
    if not kernels_run("low_rank_ffn", x) or 0 in (*u1.shape, u2.shape[1]):
        return low_rank_ffn_ref(x, u1, v1, bias1, u2, v2, bias2, activation, residual, norm)
    from lada_kernels.low_rank_ffn import low_rank_ffn_fwd

    y = low_rank_ffn_fwd(
        rows(x),
        *(u1.contiguous(), v1.contiguous(), u2.contiguous(), v2.contiguous()),
        kernel_epilogue(bias1, activation, exact_gelu=exact_gelu),
        kernel_epilogue(bias2, residual=residual, norm=norm),
        dense=None if dense1 is None or dense2 is None else (dense1, dense2),
    )
    return y.view(*x.shape[:-1], y.shape[-1])


@_op.register_fake
def _(x, u1, v1, bias1, u2, *args, **kwargs):
    return x.new_empty(*x.shape[:-1], u2.shape[0])


def _setup_context(ctx, inputs, output):
    *weights, ctx.activation, residual, norm_weight, norm_bias, ctx.eps, _, _, _ = inputs
    # the residual bears on the gradients through a norm alone
    residual = None if norm_weight is None else residual
    ctx.save_for_backward(*weights, residual, norm_weight, norm_bias)


def _backward(ctx, grad):
    x, u1, v1, bias1, u2, v2, bias2, residual, norm_weight, norm_bias = ctx.saved_tensors
    x2 = x.reshape(-1, x.shape[-1])
    # the hidden features are computed again rather than kept
    t1 = F.linear(x2, v1)
    z1 = F.linear(t1, u1, bias1)
    h = epilogue_ref(z1, ctx.activation)
    t2 = F.linear(h, v2)
    dz2, d_residual, d_weight, d_shift = epilogue_backward(
        *(grad, lambda: F.linear(t2, u2, bias2), "none", residual),
        join_norm(norm_weight, norm_bias, ctx.eps),
    )
    dz2 = dz2.reshape(-1, dz2.shape[-1])
    dh, dt2 = dx_op(dz2, u2, v2, 1)
    dz1 = activation_backward(dh, z1, ctx.activation)
    dx, dt1 = dx_op(dz1, u1, v1, 1)
    du1, dv1, dbias1 = dfactors_op(dz1, x2, t1, dt1, 1)
    du2, dv2, dbias2 = dfactors_op(dz2, h, t2, dt2, 1)
    return (
        *(dx.view_as(x), du1, dv1),
        None if bias1 is None else dbias1,
        *(du2, dv2),
        None if bias2 is None else dbias2,
        None,
        d_residual if ctx.needs_input_grad[8] else None,
        *(d_weight, d_shift),
        *(None,) * 4,
    )


_op.register_autograd(_backward, setup_context=_setup_context)


def _check(x, u1, v1, bias1, u2, v2, bias2, activation, residual, norm, dense1, dense2):
    op = "low_rank_ffn"
    factors = {"u1": u1, "v1": v1, "u2": u2, "v2": v2}
    if any(t.ndim != 2 for t in factors.values()) or (
        (u1.shape[1], u2.shape[1], u1.shape[0]) != (v1.shape[0], *v2.shape)
    ):
        shapes = ", ".join(f"{name} {tuple(t.shape)}" for name, t in factors.items())
        raise ValueError(
            f"{op}: {shapes}; expected u1 (hidden, rank1), v1 (rank1, in), u2 (out, rank2) and "
            "v2 (rank2, hidden)"
        )
    check_x(op, x, v1.shape[1])
    for name, bias, width in (("bias1", bias1, len(u1)), ("bias2", bias2, len(u2))):
        if bias is not None and bias.shape != (width,):
            raise ValueError(f"{op}: {name} {tuple(bias.shape)}; expected ({width},)")
    for name, weight, shape in (
        ("dense[0]", dense1, (len(u1), v1.shape[1])),
        ("dense[1]", dense2, (len(u2), v2.shape[1])),
    ):
        if weight is not None and weight.shape != shape:
            raise ValueError(f"{op}: {name} {tuple(weight.shape)}; expected {shape}")
    check_operands(op, x, **factors, bias1=bias1, bias2=bias2)
    check_operands(op, x, **{"dense[0]": dense1, "dense[1]": dense2})
    check_epilogue(op, x, len(u2), None, activation, residual, norm)
