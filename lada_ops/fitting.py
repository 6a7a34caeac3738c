"""What the weight of a layer becomes: the format of its plan, nearest by a norm."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .compress.blocks import Selection, prune_blocks
from .compress.sparse_low_rank import alternate
from .compress.svd import damped, truncated_svd
from .formats import Format
from .plans import LayerPlan, Objective


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
        inputs, outputs = damped(inputs), damped(outputs)
        return {
            "weights": cls(),
            "scales": cls(inputs.diagonal().diag()),
            "fisher": cls(None, outputs.diagonal().diag()),
            "activations": cls(inputs),
            "outputs": cls(inputs, outputs),
            "auto": cls(inputs, outputs),
        }[objective]


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
