"""Preset `lada-block`: LadaBERT with structured pruning, of rank slices and blocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from torch import nn

from ..architectures.encoders import encoder_linears
from ..compression.batches import Batches
from ..compression.budget import plan
from ..compression.compress import compress
from ..compression.plan import METHODS, Method
from ..compression.pretrained import compression_of
from ..compression.shrink import shrink
from ..formats.bsr import Bsr
from ..formats.counts import Counts
from ..formats.grid import check_block
from ..modules.compressed_linear import CompressedLinear
from .losses import Losses
from .pruner import SCORES, Pruner, Score, UnitPruner
from .recipe import Probe
from .schedules import Span
from .units import unit_grids

BlockOrder = Literal["factor_first", "prune_first"]
BLOCK_ORDERS: tuple[BlockOrder, ...] = get_args(BlockOrder)


@dataclass(frozen=True)
class LadaBlockConfig:
    """LadaBERT for hardware: ``W = u v + S``; training drops ranks and blocks of least importance.

    ratio: stored bytes of the encoder's linears (values, indices, biases), dense over compressed.
    method: format of the compressed linears. block: (out, in) of the blocks. rank_multiple: divisor
    of every rank.

    order: "factor_first" starts from the calibrated compression at ``ratio ** head_start``, and
    drops ranks and blocks during training. "prune_first" trains the dense model first, drops blocks
    down to that ratio, and factorises the remaining weight, which is close to low rank after
    first-order pruning (LPAF, Ren and Zhu, ACL 2023).
    score, span: importance score, and the part of a stage in which units are pruned; see
    `UnitPruner`.

    Raises ValueError on a value out of range.
    """

    ratio: float = 5.0
    method: Method = "low_rank"
    block: tuple[int, int] = (128, 16)
    rank_multiple: int = 8
    order: BlockOrder = "factor_first"
    head_start: float = 0.7
    score: Score = "second_order"
    span: Span = Span(0.05, 0.6)
    losses: Losses = field(default_factory=Losses)

    def __post_init__(self) -> None:
        for name, known in (("method", METHODS), ("order", BLOCK_ORDERS), ("score", SCORES)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"LadaBlockConfig: {name} {getattr(self, name)!r}; expected one of {known}"
                )
        if not self.ratio > 1:
            raise ValueError(f"LadaBlockConfig: ratio {self.ratio}; expected above 1")
        if not 0 < self.head_start <= 1:
            raise ValueError(f"LadaBlockConfig: head_start {self.head_start}; expected 0 to 1")

    @property
    def stages(self) -> tuple[str, ...]:
        return ("train",) if self.order == "factor_first" else ("prune", "train")

    def check(self, model: nn.Module) -> None:
        for ratio in (self.ratio, self._first_ratio):
            plan(model, ratio, self.method, block=self.block, rank_multiple=self.rank_multiple)
        if self.order == "prune_first":
            for name, linear in encoder_linears(model).items():
                shape = linear.out_features, linear.in_features
                check_block(f"LadaBlockConfig: {name}", self.block, shape)

    def build(self, stage: str, model: nn.Module, batches: Batches, quiet: bool) -> None:
        if stage == "train":
            compress(
                model,
                self._first_ratio,
                self.method,
                calibration=batches,
                sequential=False,
                # an error that hardly moves the outputs may still move the scores and hidden states
                objective="activations",
                block=self.block,
                rank_multiple=self.rank_multiple,
                quiet=quiet,
            )

    def pruner(self, stage: str, model: nn.Module, epochs: float, probe: Probe) -> Pruner | None:
        if stage == "prune":
            linears = encoder_linears(model)
            dense = sum((_counts(m) for m in linears.values()), Counts()).stored_bytes
            grids = unit_grids(linears, self.block, self.rank_multiple)
            other = sum(_bytes_beside_blocks(m, self.block) for m in linears.values())
            return UnitPruner(grids, dense / self._first_ratio - other, self.span, self.score)
        compression = compression_of(model)
        assert compression is not None
        layer_plans, report = compression[0].layers, compression[1]
        modules = {name: model.get_submodule(name) for name in layer_plans}
        grids = unit_grids(modules, self.block, self.rank_multiple)
        stored = sum((_counts(m) for m in modules.values()), Counts()).stored_bytes
        other = stored - sum(int(grid.present.sum()) * grid.unit_bytes for grid in grids)
        target = report.dense.stored_bytes / self.ratio - other
        return UnitPruner(grids, target, self.span, self.score)

    def finish(self, model: nn.Module) -> None:
        shrink(model)

    def to_dict(self) -> Mapping[str, Any]:
        return {"preset": "lada-block"} | asdict(self)

    @property
    def _first_ratio(self) -> float:
        return self.ratio**self.head_start


def _counts(module: nn.Module) -> Counts:
    if isinstance(module, CompressedLinear):
        return module.counts()
    return sum((Counts.of(parameter) for parameter in module.parameters()), Counts())


def _bytes_beside_blocks(linear: nn.Linear, block: tuple[int, int]) -> int:
    bias = 0 if linear.bias is None else linear.bias.numel() * linear.bias.element_size()
    return bias + Bsr.pointer_bytes((linear.out_features, linear.in_features), block)
