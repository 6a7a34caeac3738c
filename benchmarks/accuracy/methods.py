"""Methods of the accuracy table: the paper's ablation, and baselines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from lada_ops.architectures.encoders import encoder_linears
from lada_ops.compression.batches import Batches
from lada_ops.distill.lada import LadaConfig
from lada_ops.distill.lada_block import LadaBlockConfig
from lada_ops.distill.losses import Losses
from lada_ops.distill.recipe import Probe, Recipe

LABELS = Losses(attention=0, hidden=0, logits=0, labels=1)


@dataclass(frozen=True)
class SmallerDense:
    """Baseline: a BERT with fewer layers and narrower feed-forwards, cut from the teacher.

    The encoder has 1 / ratio of the teacher's weights. The number of layers divides the teacher's
    and leaves feed-forwards about half as wide; every layer starts as the teacher's layer whose
    outputs it learns, with the neurons of largest weights.
    """

    ratio: float
    losses: Losses = field(default_factory=Losses)

    @property
    def stages(self) -> tuple[str, ...]:
        return ("train",)

    def check(self, model: nn.Module) -> None:
        self.sizes(model)

    def sizes(self, model: nn.Module) -> tuple[int, int]:
        """Number of layers, and of neurons per feed-forward, a multiple of 8."""
        config: Any = model.config
        layers, features = config.num_hidden_layers, config.hidden_size
        attention, most = 4 * features**2, config.intermediate_size
        weights = layers * (attention + 2 * features * most) / self.ratio
        fitting = {}
        for count in (n for n in range(1, layers + 1) if layers % n == 0):
            neurons = int((weights / count - attention) / (2 * features)) // 8 * 8
            if 8 <= neurons <= most:
                fitting[count] = neurons
        if not fitting:
            raise ValueError(f"SmallerDense: ratio {self.ratio}; no number of layers fits it")
        count = min(fitting, key=lambda n: abs(fitting[n] - most / 2))
        return count, fitting[count]

    @torch.no_grad()
    def build(self, stage: str, model: nn.Module, batches: Batches, quiet: bool) -> None:
        count, neurons = self.sizes(model)
        encoder: Any = next(m for m in model.modules() if isinstance(m, nn.ModuleList))
        owner: Any = next(m for m in model.modules() if getattr(m, "layer", None) is encoder)
        config: Any = model.config
        step = config.num_hidden_layers // count
        owner.layer = nn.ModuleList(list(encoder)[step - 1 :: step])
        layer: Any
        for layer in owner.layer:
            up, down = layer.intermediate.dense, layer.output.dense
            sizes = up.weight.square().sum(1) * down.weight.square().sum(0)
            kept = sizes.topk(neurons).indices.sort().values
            up.weight, up.bias = nn.Parameter(up.weight[kept]), nn.Parameter(up.bias[kept])
            down.weight = nn.Parameter(down.weight[:, kept].contiguous())
            up.out_features = down.in_features = neurons
        config.num_hidden_layers, config.intermediate_size = count, neurons

    def pruner(self, stage: str, model: nn.Module, epochs: float, probe: Probe) -> None:
        return None

    def finish(self, model: nn.Module) -> None:
        pass

    def to_dict(self) -> Mapping[str, Any]:
        return {"preset": "smaller dense"} | asdict(self)


def _svd(model: PreTrainedModel, ratio: float) -> LadaConfig:
    """SVD with the one rank for all linears that meets the ratio."""
    shapes = [(m.out_features, m.in_features) for m in encoder_linears(model).values()]
    rank = sum(r * c for r, c in shapes) / ratio / sum(r + c for r, c in shapes)
    return LadaConfig(rank=int(rank), encoder_keep=1, embedding_keep=None, losses=LABELS)


def _pruning(model: PreTrainedModel, ratio: float) -> LadaConfig:
    return LadaConfig(rank=None, encoder_keep=1 / ratio, embedding_keep=None, losses=LABELS)


def _lada(model: PreTrainedModel, ratio: float) -> LadaConfig:
    return LadaConfig.of_ratio(model, ratio, embedding_keep=None)


def _hybrid(model: PreTrainedModel, ratio: float) -> LadaConfig:
    return replace(_lada(model, ratio), losses=LABELS)


METHODS: Mapping[str, Callable[[PreTrainedModel, float], Recipe | None]] = {
    "svd": _svd,
    "pruning": _pruning,
    "hybrid": _hybrid,
    "lada": _lada,
    "lada-block": lambda model, ratio: LadaBlockConfig(ratio),
    "calibration": lambda model, ratio: None,
    "smaller-dense": lambda model, ratio: SmallerDense(ratio),
}
"""Recipes by name, for a model and a ratio; None for calibration without training.

svd, pruning and hybrid train on the labels alone, the others on the teacher alone.
"""
