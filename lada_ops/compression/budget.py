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
from ..formats.bsr import Bsr
from ..formats.checks import check_finite
from ..formats.grid import check_block, grid_of, group_of
from ..formats.low_rank import LowRank
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
    """Plan that stores the encoder's linears in ``1 / ratio`` of their bytes, or just under.

    The budget counts everything stored: factors, block values, indices, and the biases, which stay
    dense. Each linear gets the same share of its bytes. With calibration only half of the budget is
    shared so; the other half goes where it reduces the layers' output error most.

    calibration: batches or `layer_statistics` of them, as for `compress`.
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
    gains = {n: _Gains.of(linears[n], s, objective) for n, s in statistics.items()}
    budget = {n: _dense_bytes(m) / ratio - _bias_bytes(m) for n, m in linears.items()}
    rank_bytes = {n: LowRank.rank_bytes(_shape(m), m.weight.dtype) for n, m in linears.items()}
    ranks: dict[str, int] = {}
    if method != "block_sparse":
        share = 1.0 if method == "low_rank" else low_rank_share
        ranks = _spend(
            {n: share * b for n, b in budget.items()},
            {n: rank_multiple * price for n, price in rank_bytes.items()},
            {n: LowRank.break_even(_shape(m)) // rank_multiple for n, m in linears.items()},
            {n: layer.ranks(rank_multiple) for n, layer in gains.items()},
        )
        ranks = {n: units * rank_multiple for n, units in ranks.items()}
    densities: dict[str, float] = {}
    if method != "low_rank":
        groups = {n: group_of(_shape(m), block) for n, m in linears.items()}
        cells = {n: math.prod(grid_of(_shape(m), block)) for n, m in linears.items()}
        left = {
            n: budget[n] - ranks.get(n, 0) * rank_bytes[n] - Bsr.pointer_bytes(_shape(m), block)
            for n, m in linears.items()
        }
        counts = _spend(
            left,
            {n: groups[n] * Bsr.block_bytes(block, m.weight.dtype) for n, m in linears.items()},
            {n: cells[n] // groups[n] for n in linears},
            {n: layer.blocks(block, selection) for n, layer in gains.items()},
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
        highest = LowRank.break_even(_shape(linear))
        if method != "block_sparse" and highest < rank_multiple:
            raise ValueError(
                f"plan: {name} is too small for a rank that is a multiple of {rank_multiple}: it "
                f"pays below {highest}; expected layers without it, or a lower "
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
class _Gains:
    """Gains of a layer's ranks and blocks: the output error that each takes away.

    Errors are those of the model's outputs, or of the layer's own as shares of their size.
    """

    weight: Tensor
    inputs: Tensor
    outputs: Tensor

    @classmethod
    def of(cls, linear: nn.Linear, statistics: LayerStatistics, objective: Objective) -> _Gains:
        weight = linear.weight.detach().double()
        like = {"dtype": weight.dtype, "device": weight.device}
        norm = ErrorNorm.of(objective, statistics.centred_for(linear).inputs, statistics.outputs)
        inputs, outputs, moments = norm.inputs, norm.outputs, statistics.inputs
        if inputs is None:
            inputs = moments = torch.eye(weight.shape[1], **like)
        if outputs is None:
            # errors of two layers compare only as shares of their output norms
            size = (weight @ moments * weight).sum().clamp(min=1e-300)
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
    """Highest ratio at which the budget pays for the least rank and blocks of every layer."""
    modules = linears.values()
    ranks = sum(rank_multiple * LowRank.rank_bytes(_shape(m), m.weight.dtype) for m in modules)
    if method == "low_rank":
        least = ranks
    else:
        pointers = sum(Bsr.pointer_bytes(_shape(m), block) for m in modules)
        packs = sum(
            group_of(_shape(m), block) * Bsr.block_bytes(block, m.weight.dtype) for m in modules
        )
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

    The next unit goes to the layer that lacks most of its own budget. gains: of each further unit
    of a layer; with them only half of its budget is spent so, the rest by gain per price.
    """
    units = dict.fromkeys(budget, least)
    left = sum(budget.values()) - least * sum(price.values())
    even = 0.5 if gains else 1.0

    def urgency(n: str) -> tuple[bool, float]:
        lacking = even * budget[n] - units[n] * price[n]
        if lacking > 0 or not gains:
            return lacking > 0, lacking / max(abs(budget[n]), 1)  # a bias may exceed it
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


def _dense_bytes(linear: nn.Linear) -> int:
    return linear.weight.numel() * linear.weight.element_size() + _bias_bytes(linear)


def _bias_bytes(linear: nn.Linear) -> int:
    return 0 if linear.bias is None else linear.bias.numel() * linear.bias.element_size()
