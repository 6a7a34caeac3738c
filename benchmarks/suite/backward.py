"""Training steps: gradients of input, weights and bias, forward pass included.

Our op beside autograd over plain torch: a dense layer trained dense, the two products of a low-rank
layer, and the dense weight assembled from its blocks at every step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import lada_ops
from lada_ops.formats.bsr import bsr_to_dense
from lada_ops.tune.operands import Operands, Tensors, finished

from .cases import SuiteCase
from .workload import Implementation, Implementations, Workload

Forward = Callable[..., Tensor]


def training_step(case: SuiteCase, device: torch.device) -> Workload:
    """Implementations of all gradients of `case`, "dense" first."""
    operands = Operands.draw(case, device)
    x, bias, activation = operands.x, operands.biases["bias"], operands.activation
    (exact_weight,) = operands.dense_weights()
    weight = exact_weight.to(x.dtype)
    inputs = {"x": x, "bias": bias}
    grad = torch.randn(case.tokens, case.n, device=device).to(x.dtype)
    in_torch = partial(assembled, activation)
    in_dense = partial(dense, activation)
    op = partial(getattr(lada_ops, case.stem), activation=activation)

    exact = gradients(in_torch, _in_fp64(inputs | operands.weights), grad.double())
    read = partial(flattened, scales=[float(g.norm()) for g in exact])
    dense_exact = gradients(in_dense, _in_fp64(inputs | {"weight": weight}), grad.double())
    read_dense = partial(flattened, scales=[float(g.norm()) for g in dense_exact])

    def compressed(forward: Forward, tensors: Tensors) -> Implementation:
        # the forward product, and two of the same size for the gradients
        macs = 3 * operands.elements
        return Implementation(partial(_step, forward), tensors | {"grad": grad}, macs, read=read)

    implementations: Implementations = {
        "dense": lambda: Implementation(
            partial(_step, in_dense),
            inputs | {"weight": weight, "grad": grad},
            3 * weight.numel(),
            expected=read_dense(dense_exact),
            read=read_dense,
        ),
        "autograd": lambda: compressed(in_torch, inputs | operands.weights),
        "our op": lambda: compressed(op, inputs | operands.launcher_arguments),
    }
    trained = x.numel() + bias.numel() + operands.elements
    return Workload(case, read(exact), implementations, trained * x.element_size())


def gradients(forward: Forward, tensors: Tensors, grad: Tensor) -> list[Tensor]:
    """Gradients of all floating-point `tensors`, in their order."""
    with torch.enable_grad():
        leaves = {
            name: t.detach().requires_grad_(t.is_floating_point()) for name, t in tensors.items()
        }
        wanted = [t for t in leaves.values() if t.requires_grad]
        return list(torch.autograd.grad(forward(**leaves), wanted, grad))


def flattened(grads: Sequence[Tensor], scales: Sequence[float]) -> Tensor:
    """Gradients as one row (1, elements), each divided by its scale so that small ones count."""
    parts = [g.flatten().float() / s for g, s in zip(grads, scales, strict=True)]
    return torch.cat(parts)[None]


def dense(activation: str, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return finished(F.linear(x, weight, bias), activation)


def assembled(
    activation: str,
    x: Tensor,
    bias: Tensor,
    u: Tensor | None = None,
    v: Tensor | None = None,
    crow_indices: Tensor | None = None,
    col_indices: Tensor | None = None,
    values: Tensor | None = None,
) -> Tensor:
    """Compressed linear in plain torch, the sparse part as a dense weight assembled anew."""
    z = bias
    if u is not None and v is not None:
        z = F.linear(F.linear(x, v), u, bias)
    if crow_indices is not None and col_indices is not None and values is not None:
        z = z + F.linear(x, bsr_to_dense(crow_indices, col_indices, values, x.shape[-1]))
    return finished(z, activation)


def _step(forward: Forward, grad: Tensor, **tensors: Tensor) -> list[Tensor]:
    return gradients(forward, tensors, grad)


def _in_fp64(tensors: Tensors) -> Tensors:
    return {k: t.double() if t.is_floating_point() else t for k, t in tensors.items()}
