"""Training steps: the gradients of input, weights and bias, forward pass included.

Our op beside autograd over what one would write in torch: a dense layer that is trained dense, the
two products of a low-rank one, the dense weight assembled anew from its blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import lada_ops
from lada_ops.formats.bsr import bsr_to_dense

from .cases import Case
from .problem import Entry, Operands, Problem, Tensors

Forward = Callable[..., Tensor]


def training_step(case: Case, device: torch.device, dtype: torch.dtype) -> Problem:
    """The ways to compute all gradients of `case`, "dense" first."""
    operands = Operands.draw(case, device, dtype)
    bsr, weight = operands.bsr, operands.weight().to(dtype)
    ours: Tensors = dict(operands.factors)
    if bsr is not None:
        ours |= {
            "crow_indices": bsr.crow_indices,
            "col_indices": bsr.col_indices,
            "values": bsr.values,
        }
    given = {"x": operands.x, "bias": operands.bias}
    grad = torch.randn(case.tokens, case.out_features, device=device).to(dtype)
    activation = operands.activation
    assembled = partial(in_torch, activation)
    order = bsr.order if bsr is not None and bsr.whole_packs else None
    sorted_rows = {} if order is None else {"order": order}
    op = partial(getattr(lada_ops, case.stem), activation=activation)
    macs = sum(t.numel() for t in ours.values() if t.is_floating_point())

    exact = gradients(assembled, {k: _in_fp64(t) for k, t in (given | ours).items()}, grad.double())
    own = partial(flattened, scales=[float(g.norm()) for g in exact])
    dense_exact = gradients(
        partial(dense, activation),
        {k: t.double() for k, t in (given | {"weight": weight}).items()},
        grad.double(),
    )
    theirs = partial(flattened, scales=[float(g.norm()) for g in dense_exact])

    def entry(forward: Forward, tensors: Tensors) -> Entry:
        # forward, and two products of the same size for the gradients
        return Entry(partial(_step, forward), given | tensors | {"grad": grad}, 3 * macs, read=own)

    ways = {
        "dense": lambda: Entry(
            partial(_step, partial(dense, activation)),
            given | {"weight": weight, "grad": grad},
            3 * weight.numel(),
            expected=theirs(dense_exact),
            read=theirs,
        ),
        "autograd": lambda: entry(assembled, ours),
        "our op": lambda: entry(op, ours | sorted_rows),
    }
    trained = sum(t.numel() for t in (given | ours).values() if t.is_floating_point())
    return Problem(case, own(exact), ways, trained * dtype.itemsize)


def gradients(forward: Forward, tensors: Tensors, grad: Tensor) -> list[Tensor]:
    """Those of all floating-point `tensors`, in their order."""
    with torch.enable_grad():
        leaves = {
            name: t.detach().requires_grad_(t.is_floating_point()) for name, t in tensors.items()
        }
        wanted = [t for t in leaves.values() if t.requires_grad]
        return list(torch.autograd.grad(forward(**leaves), wanted, grad))


def flattened(grads: Sequence[Tensor], scales: Sequence[float]) -> Tensor:
    """All gradients as one row, each in units of its norm: none is lost beside a larger one."""
    parts = [g.flatten().float() / s for g, s in zip(grads, scales, strict=True)]
    return torch.cat(parts)[None]


def dense(activation: str, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    z = F.linear(x, weight, bias)
    return F.gelu(z) if activation == "gelu" else z


def in_torch(
    activation: str,
    x: Tensor,
    bias: Tensor,
    u: Tensor | None = None,
    v: Tensor | None = None,
    crow_indices: Tensor | None = None,
    col_indices: Tensor | None = None,
    values: Tensor | None = None,
) -> Tensor:
    z = bias
    if u is not None and v is not None:
        z = F.linear(F.linear(x, v), u, bias)
    if crow_indices is not None and col_indices is not None and values is not None:
        z = z + F.linear(x, bsr_to_dense(crow_indices, col_indices, values, x.shape[-1]))
    return F.gelu(z) if activation == "gelu" else z


def _step(forward: Forward, grad: Tensor, **tensors: Tensor) -> list[Tensor]:
    return gradients(forward, tensors, grad)


def _in_fp64(t: Tensor) -> Tensor:
    return t.double() if t.is_floating_point() else t
