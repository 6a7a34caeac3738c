"""`plan`: a budget of stored bytes, shared between the linears of an encoder."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor, nn

from ..approximation.blocks import Selection, block_gains, check_selection
from ..approximation.svd import rank_gains
from ..architectures.encoders import encoder_linears
from ..formats.bsr import INDEX_DTYPE
from ..formats.checks import check_finite
from ..formats.grid import check_block, group_of
from ..modules.checks import check_module
from .batches import Batches
from .calibration import LayerStatistics, Statistics, statistics_of
from .fit import ErrorNorm
from .plan import METHODS, CompressionPlan, LayerPlan, Method, Objective, check_objective, is_size


def plan(
    model: nn.Module,
    ratio: float = 5.0,
    method: Method = "low_rank",
    *,
    calibration: Batches | Statistics | None = None,
    block: tuple[int, int] = (128, 16),
    rank_multiple: int = 8,
    low_rank_share: float = 0.75,
    objective: Objective = "auto",
    selection: Selection = "wanda",
    layers: str | None = None,
    quiet: bool = False,
) -> CompressionPlan:
    """A plan that stores the encoder's linears in ``1 / ratio`` of their bytes, or just under.

    The budget counts everything stored: factors, block values, indices, and the biases, which stay
    dense. It is shared evenly. With calibration only half of it is, and the other half goes where
    it takes most from the layers' output error.

    calibration: as for `compress`; worth it whenever `compress` will have it.
    ratio: dense bytes over compressed bytes, above 1. block: (out, in) of the sparse blocks; the
    wide output side is what makes them fast. rank_multiple: ranks are multiples of it.
    low_rank_share: the part of a layer's budget that "sparse_low_rank" gives to u and v.
    objective, selection: as in `CompressionPlan`.
    layers: a regular expression for the names of the linears, by default the encoder's.

    Raises TypeError on what is no model; ValueError on arguments out of range, a block that doesn't
    divide a weight, a ratio that cannot be reached, or a model with no matching linears: it may be
    compressed already, or hold adapters that are not merged. Only with calibration are the values
    of the weights looked at, and must be there.
    """
    check_module("plan", model, values=calibration is not None)
    check_objective("plan", objective)
    check_selection("plan", selection)
    linears = encoder_linears(model, layers)
    _check(linears, ratio, method, block, rank_multiple, low_rank_share)
    if calibration is not None:
        for name, linear in linears.items():
            check_finite(f"plan: {name}", linear.weight)
    statistics = statistics_of(model, linears, calibration, quiet)
    worth = {n: _Worth.of(linears[n], s, objective) for n, s in statistics.items()}
    budget = {n: _dense_bytes(m) / ratio - _bias_bytes(m) for n, m in linears.items()}
    ranks: dict[str, int] = {}
    if method != "block_sparse":
        share = 1.0 if method == "low_rank" else low_rank_share
        ranks = _spend(
            {n: share * b for n, b in budget.items()},
            {n: rank_multiple * _rank_bytes(m) for n, m in linears.items()},
            {n: _break_even(m) // rank_multiple for n, m in linears.items()},
            {n: of.ranks(rank_multiple) for n, of in worth.items()},
        )
        ranks = {n: units * rank_multiple for n, units in ranks.items()}
    densities: dict[str, float] = {}
    if method != "low_rank":
        groups = {n: group_of(_shape(m), block) for n, m in linears.items()}
        cells = {n: _cells(m, block) for n, m in linears.items()}
        left = {
            n: budget[n] - ranks.get(n, 0) * _rank_bytes(m) - _row_pointer_bytes(m, block)
            for n, m in linears.items()
        }
        counts = _spend(
            left,
            {n: groups[n] * _block_bytes(m, block) for n, m in linears.items()},
            {n: cells[n] // groups[n] for n in linears},
            {n: of.blocks(block, selection) for n, of in worth.items()},
            least=0 if ranks else 1,
        )
        densities = {n: count * groups[n] / cells[n] for n, count in counts.items()}
    return CompressionPlan(
        {
            name: LayerPlan(
                method,
                linear.in_features,
                linear.out_features,
                rank=ranks.get(name),
                block=block if name in densities else None,
                density=densities.get(name),
            )
            for name, linear in linears.items()
        },
        objective,
        selection,
    )


def _check(
    linears: Mapping[str, nn.Linear],
    ratio: float,
    method: Method,
    block: tuple[int, int],
    rank_multiple: int,
    low_rank_share: float,
) -> None:
    if method not in METHODS:
        raise ValueError(f"plan: method {method!r}; expected one of {METHODS}")
    if not (isinstance(ratio, Real) and ratio > 1):
        raise ValueError(f"plan: ratio {ratio!r}; expected above 1")
    if not is_size(rank_multiple):
        raise ValueError(f"plan: rank_multiple {rank_multiple!r}; expected 1 or more")
    if not (isinstance(low_rank_share, Real) and 0 < low_rank_share < 1):
        raise ValueError(f"plan: low_rank_share {low_rank_share!r}; expected between 0 and 1")
    if method != "low_rank":
        if not isinstance(block, list | tuple) or not all(map(is_size, block)):
            raise ValueError(f"plan: block {block!r}; expected two whole numbers above 0")
        for name, linear in linears.items():
            check_block(f"plan: {name}", block, _shape(linear))
    for name, linear in linears.items():
        if method != "block_sparse" and _break_even(linear) < rank_multiple:
            raise ValueError(
                f"plan: {name} is too small for a rank that is a multiple of {rank_multiple}: it "
                f"pays below {_break_even(linear)}; expected layers without it, or a lower "
                "rank_multiple of lada_ops.plan"
            )
    most = _most_ratio(linears, method, block, rank_multiple, low_rank_share)
    if ratio > most:
        advice = "a smaller block" if method != "low_rank" else "layers that are larger"
        if method != "block_sparse":
            advice += ", or a lower rank_multiple of lada_ops.plan"
        raise ValueError(
            f"plan: ratio {ratio} cannot be reached with the smallest rank, or a single pack of "
            f"blocks, in every layer; expected at most {math.floor(100 * most) / 100}, {advice}"
        )


@dataclass(frozen=True, eq=False)
class _Worth:
    """What a layer's ranks and blocks are worth: of the model's outputs, or each of its own."""

    weight: Tensor
    inputs: Tensor
    outputs: Tensor

    @classmethod
    def of(cls, linear: nn.Linear, seen: LayerStatistics, objective: Objective) -> _Worth:
        weight = linear.weight.detach().double()
        like = {"dtype": weight.dtype, "device": weight.device}
        norm = ErrorNorm.of(objective, seen.unexplained(linear).inputs, seen.outputs)
        inputs, outputs, seen_inputs = norm.inputs, norm.outputs, seen.inputs
        if inputs is None:
            inputs = seen_inputs = torch.eye(weight.shape[1], **like)
        if outputs is None:
            # errors of one layer and of another are alike only as shares of its size
            size = (weight @ seen_inputs * weight).sum().clamp(min=1e-300)
            outputs = torch.eye(weight.shape[0], **like) / size
        return cls(weight, inputs, outputs)

    def ranks(self, multiple: int) -> list[float]:
        return rank_gains(self.weight, self.inputs, self.outputs, multiple)

    def blocks(self, block: tuple[int, int], selection: Selection) -> list[float]:
        rows = self.outputs.diagonal().sqrt()
        return block_gains(rows[:, None] * self.weight, self.inputs, block, selection)


def _most_ratio(
    linears: Mapping[str, nn.Linear],
    method: Method,
    block: tuple[int, int],
    rank_multiple: int,
    low_rank_share: float,
) -> float:
    """The highest ratio at which each part of the budget has what its layers need at least."""
    modules = linears.values()
    ranks = sum(rank_multiple * _rank_bytes(m) for m in modules)
    if method == "low_rank":
        least = ranks
    else:
        pointers = sum(_row_pointer_bytes(m, block) for m in modules)
        packs = sum(group_of(_shape(m), block) * _block_bytes(m, block) for m in modules)
        both = max(ranks / low_rank_share, pointers / (1 - low_rank_share))
        least = packs + pointers if method == "block_sparse" else both
    return sum(map(_dense_bytes, modules)) / (least + sum(map(_bias_bytes, modules)))


def _spend(
    budget: Mapping[str, float],
    price: Mapping[str, int],
    most: Mapping[str, int],
    gains: Mapping[str, Sequence[float]],
    least: int = 1,
) -> dict[str, int]:
    """Whole units per layer, `least` to `most`, whose prices stay within the summed budget.

    Unit by unit to the layer that lacks most of its own budget. With `gains`, what the next unit
    of a layer is worth, only up to half of its budget; the rest goes where it gains most.
    """
    units = dict.fromkeys(budget, least)
    left = sum(budget.values()) - least * sum(price.values())
    even = 0.5 if gains else 1.0

    def urgency(n: str) -> tuple[bool, float]:
        lacking = even * budget[n] - units[n] * price[n]
        if lacking > 0 or not gains:
            return lacking > 0, lacking / max(abs(budget[n]), 1)  # a bias may take all of it
        return False, gains[n][units[n]] / price[n]

    queue: list[tuple[int, float, str]] = []

    def enqueue(n: str) -> None:
        if units[n] < most[n]:
            early, value = urgency(n)
            heapq.heappush(queue, (-early, -value, n))

    for n in units:
        enqueue(n)
    while queue:
        _, _, n = heapq.heappop(queue)
        if price[n] <= left:
            units[n] += 1
            left -= price[n]
            enqueue(n)
    return units


def _shape(linear: nn.Linear) -> tuple[int, int]:
    return linear.out_features, linear.in_features


def _break_even(linear: nn.Linear) -> int:
    """The rank whose factors are no larger, and no faster, than the dense weight."""
    return linear.weight.numel() // sum(_shape(linear))


def _cells(linear: nn.Linear, block: tuple[int, int]) -> int:
    return (linear.out_features // block[0]) * (linear.in_features // block[1])


def _dense_bytes(linear: nn.Linear) -> int:
    return linear.weight.numel() * linear.weight.element_size() + _bias_bytes(linear)


def _bias_bytes(linear: nn.Linear) -> int:
    return 0 if linear.bias is None else linear.bias.numel() * linear.bias.element_size()


def _rank_bytes(linear: nn.Linear) -> int:
    return sum(_shape(linear)) * linear.weight.element_size()


def _block_bytes(linear: nn.Linear, block: tuple[int, int]) -> int:
    return block[0] * block[1] * linear.weight.element_size() + INDEX_DTYPE.itemsize


def _row_pointer_bytes(linear: nn.Linear, block: tuple[int, int]) -> int:
    return (linear.out_features // block[0] + 1) * INDEX_DTYPE.itemsize
