"""What the weight of a layer becomes: the format of its plan, nearest by a norm."""

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
    """By what an error E (out, in) of a weight counts: ``tr(E^T outputs E inputs)``.

    inputs (in, in) and outputs (out, out): fp64, positive definite; None is the identity.
    """

    inputs: Tensor | None = None
    outputs: Tensor | None = None

    @classmethod
    def of(cls, objective: Objective, inputs: Tensor, outputs: Tensor) -> ErrorNorm:
        """That of an objective, by what `LayerStatistics` calls inputs and outputs."""
        of_inputs, of_outputs = _SIDES[objective]
        return cls(of_inputs(inputs), of_outputs(outputs))


def _whole(matrix: Tensor) -> Tensor | None:
    return damped(matrix)


def _diagonal(matrix: Tensor) -> Tensor | None:
    return damped(matrix).diagonal().diag()


def _identity(_matrix: Tensor) -> Tensor | None:
    return None


_Side: TypeAlias = Callable[[Tensor], Tensor | None]
_SIDES: Mapping[Objective, tuple[_Side, _Side]] = {  # what is seen of inputs, and of outputs
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
    """The format that `plan` names, nearest to ``weight (out, in)`` by `norm`, else Frobenius'.

    Low-rank factors take the norm whole, blocks only the diagonal of its outputs. selection: how
    blocks are chosen, as for `prune_blocks`.
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
