"""Preset `lada`: LadaBERT as in its paper, SVD with unstructured pruning of the factors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..approximation.svd import leading_factors
from ..architectures.encoders import encoder_linears
from ..compression.batches import Batches
from ..compression.compress import compress
from ..compression.plan import CompressionPlan, LayerPlan
from ..compression.shrink import shrink
from ..formats.low_rank import LowRank
from ..modules.low_rank_linear import LowRankLinear
from .losses import Losses
from .pruner import Pruner
from .recipe import Probe
from .schedules import geometric

Order = Literal["svd_first", "alternate", "greedy"]
ORDERS: tuple[Order, ...] = get_args(Order)


@dataclass(frozen=True)
class LadaConfig:
    """LadaBERT (Mao et al., COLING 2020), except that biases are not pruned.

    rank: rank of the truncated SVD of every linear of the encoder; None: pruning without SVD.
    encoder_keep: share of non-zeros left in each factor, or in each linear without SVD.
    embedding_keep: share of non-zeros left in the word embeddings, from the first step on; None
    leaves them dense. layer_keep: linear's name -> its own encoder_keep.

    order: "svd_first" factorises once, then prunes in `increments` steps through the first epoch.
    "alternate" starts from the largest rank that needs no more weights than dense, and takes turns
    between increments of pruning and of SVD; "greedy" takes the one that leaves the smaller loss.
    Both end at as many non-zeros as "svd_first".

    Raises ValueError on a value out of range.
    """

    rank: int | None = 256
    encoder_keep: float = 0.405
    embedding_keep: float | None = 0.2
    layer_keep: Mapping[str, float] = field(default_factory=dict)
    order: Order = "svd_first"
    increments: int = 64
    losses: Losses = field(default_factory=Losses)

    def __post_init__(self) -> None:
        keeps = {"encoder_keep": self.encoder_keep, "embedding_keep": self.embedding_keep}
        for name, keep in (keeps | dict(self.layer_keep)).items():
            if keep is not None and not 0 < keep <= 1:
                raise ValueError(f"LadaConfig: {name} {keep}; expected above 0, up to 1")
        if self.order not in ORDERS:
            raise ValueError(f"LadaConfig: order {self.order!r}; expected one of {ORDERS}")
        if self.rank is None and self.order != "svd_first":
            raise ValueError(f"LadaConfig: order {self.order!r} without a rank; expected a rank")
        if self.increments < 1:
            raise ValueError(f"LadaConfig: increments {self.increments}; expected 1 or more")

    @classmethod
    def of_ratio(
        cls, model: PreTrainedModel, ratio: float, embedding_keep: float | None = 0.2
    ) -> LadaConfig:
        """Recipe for a `ratio` of dense weights over non-zeros, counted as in the paper.

        The count covers the weights of the encoder's linears and, unless embedding_keep is None, of
        the word embeddings. The rank is a third of the hidden size: 256 for BERT-base.

        Raises ValueError, with the nearest ratio in reach, where that rank cannot reach `ratio`.
        """
        rank = model.config.get_text_config().hidden_size // 3
        shapes = _shapes(model)
        dense, factors = _weights(shapes, None), _weights(shapes, rank)
        embedding = 0 if embedding_keep is None else _word_embedding(model).numel()
        kept = (embedding_keep or 0) * embedding
        nonzeros = (dense + embedding) / ratio - kept
        if not 0 < nonzeros <= factors:
            least = (dense + embedding) / (factors + kept)
            most = (dense + embedding) / kept if kept else math.inf
            raise ValueError(
                f"LadaConfig: ratio {ratio} is out of reach of rank {rank} with embedding_keep "
                f"{embedding_keep}; expected {least:.2f} to below {most:.4g}"
            )
        return cls(rank=rank, encoder_keep=nonzeros / factors, embedding_keep=embedding_keep)

    @property
    def stages(self) -> tuple[str, ...]:
        return ("train",)

    def check(self, model: nn.Module) -> None:
        unknown = set(self.layer_keep) - set(encoder_linears(model))
        if unknown:
            raise ValueError(
                f"LadaConfig: layer_keep for {sorted(unknown)}; expected names of the encoder's "
                "linears"
            )
        self._ranks(model)
        if self.embedding_keep is not None:
            _word_embedding(model)

    def build(self, stage: str, model: nn.Module, batches: Batches, quiet: bool) -> None:
        ranks, shapes = self._ranks(model), _shapes(model)
        if ranks is not None:
            layers = {n: LayerPlan("low_rank", c, r, ranks[n]) for n, (r, c) in shapes.items()}
            compress(model, plan=CompressionPlan(layers, "weights"), quiet=quiet)

    def pruner(self, stage: str, model: nn.Module, epochs: float, probe: Probe) -> Pruner:
        return LadaPruner(self, model, epochs, probe)

    def finish(self, model: nn.Module) -> None:
        shrink(model)

    def to_dict(self) -> Mapping[str, Any]:
        return {"preset": "lada"} | asdict(self)

    def nonzeros(self, model: nn.Module) -> int:
        """Non-zeros left in the encoder's linears and the word embeddings, as the paper counts."""
        shapes = _shapes(model)
        kept = sum(
            _weights({name: shape}, self.rank) * self.layer_keep.get(name, self.encoder_keep)
            for name, shape in shapes.items()
        )
        if self.embedding_keep is not None:
            kept += self.embedding_keep * _word_embedding(model).numel()
        return round(kept)

    def _ranks(self, model: nn.Module) -> dict[str, int] | None:
        """Start rank of each linear; None without SVD."""
        if self.rank is None:
            return None
        ranks = {}
        for name, (rows, cols) in _shapes(model).items():
            most = rows * cols // (rows + cols)
            if not 1 <= self.rank <= most:
                raise ValueError(
                    f"LadaConfig: rank {self.rank} for {name} ({rows}, {cols}); expected 1 to "
                    f"{most}, or its factors are larger than itself"
                )
            ranks[name] = self.rank if self.order == "svd_first" else most
        return ranks


LADABERT = {
    2.5: LadaConfig(encoder_keep=0.921),
    5.0: LadaConfig(encoder_keep=0.405),
    7.5: LadaConfig(encoder_keep=0.233),
    10.0: LadaConfig(encoder_keep=0.147),
}
"""The paper's models of BERT-base, by ratio: LadaBERT-1 to -4, 44M, 22M, 15M and 11M weights."""


class LadaPruner(Pruner):
    """Magnitude pruner of every matrix, which keeps fewer weights with each increment.

    No mask is stored: weights are pruned anew after every step, so a pruned weight may grow back.
    An increment of SVD factorises ``u v`` again at a smaller rank and zeroes the slices beyond it.
    """

    def __init__(self, config: LadaConfig, model: nn.Module, epochs: float, probe: Probe) -> None:
        self.config, self.epochs, self.probe = config, epochs, probe
        factors = {n: m for n, m in model.named_modules() if isinstance(m, LowRankLinear)}
        self.linears: Mapping[str, nn.Module] = factors or encoder_linears(model)
        self.embedding = None if config.embedding_keep is None else _word_embedding(model)
        self.increments = {"prune": 0, "factorise": 0}

    def prune(self, step: int, steps: int) -> None:
        due = math.floor(self.config.increments * min(1.0, step / steps * self.epochs))
        while sum(self.increments.values()) < due:
            self._increment(self._next())
        self._apply()
        if self.embedding is not None:
            keep_largest(self.embedding, self.config.embedding_keep or 1.0)

    @property
    def done(self) -> bool:
        return sum(self.increments.values()) == self.config.increments

    def state(self) -> dict[str, Any]:
        return {"increments": self.increments}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.increments = dict(state["increments"])

    def _next(self) -> str:
        if self.config.order == "svd_first":
            return "prune"
        if self.config.order == "alternate":
            return "factorise" if sum(self.increments.values()) % 2 else "prune"
        return min(("prune", "factorise"), key=self._loss_after)

    @torch.no_grad()
    def _loss_after(self, step: str) -> float:
        parameters = [p for linear in self.linears.values() for p in linear.parameters()]
        values, increments = [p.clone() for p in parameters], dict(self.increments)
        self._increment(step)
        self._apply()
        loss = self.probe()
        self.increments = increments
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)
        return loss

    def _increment(self, step: str) -> None:
        self.increments[step] += 1
        if step == "factorise":
            for name, linear in self.linears.items():
                assert isinstance(linear, LowRankLinear)
                refactorise(linear, self._rank(name, linear))

    def _apply(self) -> None:
        for name, linear in self.linears.items():
            keep = self._share(name, linear, "prune")
            if not isinstance(linear, LowRankLinear):
                keep_largest(linear.get_parameter("weight"), keep)
                continue
            rank = self._rank(name, linear)
            with torch.no_grad():
                linear.u[:, rank:] = 0
                linear.v[rank:] = 0
            keep_largest(linear.u[:, :rank], keep)
            keep_largest(linear.v[:rank], keep)

    def _rank(self, name: str, linear: LowRankLinear) -> int:
        return max(1, round(linear.rank * self._share(name, linear, "factorise")))

    def _share(self, name: str, linear: nn.Module, step: str) -> float:
        """Share of the weights (step "prune") or ranks ("factorise") kept after the increments."""
        end = self.config.layer_keep.get(name, self.config.encoder_keep)
        if self.config.order != "svd_first":
            assert isinstance(linear, LowRankLinear)
            assert self.config.rank is not None
            end *= self.config.rank / linear.rank
        return geometric(end, self.increments[step], self.config.increments)


@torch.no_grad()
def keep_largest(weight: Tensor, keep: float) -> None:
    """Zero the weight, in place, but for the share `keep` of largest magnitude."""
    dropped = weight.numel() - round(keep * weight.numel())
    if dropped:
        sizes = weight.abs()
        threshold = sizes.flatten().kthvalue(dropped).values
        weight.masked_fill_(sizes <= threshold, 0)


@torch.no_grad()
def refactorise(linear: LowRankLinear, rank: int) -> None:
    """Replace ``u v`` by its truncated SVD: in the first `rank` slices, the others zero."""
    u, v = leading_factors((linear.u.double() @ linear.v.double()), rank)
    linear.u.zero_()[:, :rank] = u.to(linear.u.dtype)
    linear.v.zero_()[:rank] = v.to(linear.v.dtype)


def _shapes(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Shape (out, in) of each of the encoder's linears."""
    return {n: (m.out_features, m.in_features) for n, m in encoder_linears(model).items()}


def _weights(shapes: Mapping[str, tuple[int, int]], rank: int | None) -> int:
    if rank is None:
        return sum(rows * cols for rows, cols in shapes.values())
    return sum(LowRank.parameters(shape, rank) for shape in shapes.values())


def _word_embedding(model: nn.Module) -> nn.Parameter:
    assert isinstance(model, PreTrainedModel)
    return model.get_input_embeddings().get_parameter("weight")
