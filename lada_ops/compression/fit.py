"""Fit of a weight: the nearest weight in the planned format, in a norm of the error."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

from ..approximation.blocks import Selection, prune_blocks
from ..approximation.sparse_low_rank import alternate
from ..approximation.svd import damped, truncated_svd
from ..formats.sparse_low_rank import Format
from .plan import LayerPlan, Objective


@dataclass(frozen=True, eq=False)
class ErrorNorm:
    """Norm in which a weight error E (out, in) is measured: ``tr(E^T outputs E inputs)``.

    inputs (in, in) and outputs (out, out): fp64, positive definite; None is the identity.
    """

    inputs: Tensor | None = None
    outputs: Tensor | None = None

    @classmethod
    def of(cls, objective: Objective, inputs: Tensor, outputs: Tensor) -> ErrorNorm:
        """Norm of an objective, from the inputs and outputs of `LayerStatistics`."""
        inputs_part, outputs_part = _PARTS[objective]
        return cls(inputs_part(inputs), outputs_part(outputs))


def _whole(matrix: Tensor) -> Tensor | None:
    return damped(matrix)


def _diagonal(matrix: Tensor) -> Tensor | None:
    return damped(matrix).diagonal().diag()


def _identity(_matrix: Tensor) -> Tensor | None:
    return None


_Part: TypeAlias = Callable[[Tensor], Tensor | None]
_PARTS: Mapping[Objective, tuple[_Part, _Part]] = {  # of inputs, of outputs
    "weights": (_identity, _identity),
    "scales": (_diagonal, _identity),
    "fisher": (_identity, _diagonal),
    "activations": (_whole, _identity),
    "outputs": (_whole, _whole),
    "auto": (_whole, _whole),
}


def fit(
    weight: Tensor,
    plan: LayerPlan,
    norm: ErrorNorm | None = None,
    selection: Selection = "wanda",
) -> Format:
    """Weight in the format of `plan` nearest to ``weight (out, in)``.

    norm: of the error; by default Frobenius. Low-rank factors use all of it, blocks only the
    diagonal of its outputs. selection: criterion for blocks, as for `prune_blocks`.
    """
    norm = norm or ErrorNorm()
    if plan.format == "low_rank":
        assert plan.rank is not None
        return truncated_svd(weight, plan.rank, norm.inputs, norm.outputs)
    if norm.outputs is not None:
        rows = norm.outputs.diagonal().sqrt()
        scaled = fit(rows[:, None] * weight.double(), plan, ErrorNorm(norm.inputs), selection)
        return scaled.scaled(1 / rows).to(weight.dtype)
    assert plan.block is not None
    assert plan.density is not None
    if plan.format == "block_sparse":
        return prune_blocks(weight, plan.block, plan.density, norm.inputs, selection)
    assert plan.rank is not None
    return alternate(weight, plan.rank, plan.block, plan.density, norm.inputs, selection=selection)
