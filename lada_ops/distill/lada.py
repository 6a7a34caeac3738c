"""`lada`: LadaBERT as its paper has it: SVD, and single weights of the factors pruned."""

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
from ..compression.calibration import Batches
from ..compression.compress import compress
from ..compression.plan import CompressionPlan, LayerPlan
from ..compression.shrink import shrink
from ..modules.low_rank_linear import LowRankLinear
from .losses import Losses
from .pruner import Pruner
from .recipe import Probe
from .schedules import geometric

Order = Literal["svd_first", "alternate", "greedy"]
ORDERS: tuple[Order, ...] = get_args(Order)


@dataclass(frozen=True)
class LadaConfig:
    """The faithful preset (Mao et al., COLING 2020), but for the biases, which it keeps.

    rank: of the truncated SVD of every linear of the encoder; None for none, which leaves pruning
    alone. encoder_keep: the share of non-zeros that is left in each factor, or in each linear.
    embedding_keep: that in the word embeddings, from the first step; None leaves them alone.
    layer_keep: for linears by name, in the place of encoder_keep.

    order: "svd_first" factorises once, then prunes in `increments` steps through the first epoch.
    "alternate" starts from the largest rank that is no larger than dense, and takes increments of
    pruning and of SVD in turns, "greedy" whichever leaves the smaller loss; both end at as many
    non-zeros as "svd_first".

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
        """The recipe for `ratio`, dense weights over non-zeros, as the paper counts them.

        What is counted are the weights of the encoder's linears and, unless embedding_keep is None,
        of the word embeddings. The rank is a third of the hidden width, as 256 is of BERT-base's.

        Raises ValueError where that rank cannot reach it, with the nearest ratio that it can.
        """
        rank = model.config.get_text_config().hidden_size // 3
        shapes = _shapes(model)
        dense, factors = _weights(shapes, None), _weights(shapes, rank)
        embedding = 0 if embedding_keep is None else _word_embedding(model).numel()
        kept = (embedding_keep or 0) * embedding
        left = (dense + embedding) / ratio - kept
        if not 0 < left <= factors:
            least = (dense + embedding) / (factors + kept)
            most = (dense + embedding) / kept if kept else math.inf
            raise ValueError(
                f"LadaConfig: ratio {ratio} is out of reach of rank {rank} with embedding_keep "
                f"{embedding_keep}; expected {least:.2f} to below {most:.4g}"
            )
        return cls(rank=rank, encoder_keep=left / factors, embedding_keep=embedding_keep)

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
            compress(model, CompressionPlan(layers, "weights"), quiet=quiet)

    def pruner(self, stage: str, model: nn.Module, epochs: float, probe: Probe) -> Pruner:
        return LadaPruner(self, model, epochs, probe)

    def finish(self, model: nn.Module) -> None:
        shrink(model)

    def to_dict(self) -> Mapping[str, Any]:
        return {"preset": "lada"} | asdict(self)

    def nonzeros(self, model: nn.Module) -> int:
        """What is left of the encoder's linears and the word embeddings, as the paper counts."""
        shapes = _shapes(model)
        kept = sum(
            _weights({name: shape}, self.rank) * self.layer_keep.get(name, self.encoder_keep)
            for name, shape in shapes.items()
        )
        if self.embedding_keep is not None:
            kept += self.embedding_keep * _word_embedding(model).numel()
        return round(kept)

    def _ranks(self, model: nn.Module) -> dict[str, int] | None:
        """What each linear's factors start from."""
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
"""The paper's models of BERT-base by ratio: LadaBERT-1 to -4, of 44M, 22M, 15M and 11M."""


class LadaPruner(Pruner):
    """Keeps the largest weights of every matrix, fewer with each increment of the first epoch.

    No mask is kept: what is zero may grow again, and is cut anew after every step. An increment of
    SVD factorises ``u v`` anew at a smaller rank; the slices beyond it are zero.
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
            self._take(self._next())
        self._cut()
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
    def _loss_after(self, kind: str) -> float:
        parameters = [p for linear in self.linears.values() for p in linear.parameters()]
        before, taken = [p.clone() for p in parameters], dict(self.increments)
        self._take(kind)
        self._cut()
        loss = self.probe()
        self.increments = taken
        for parameter, value in zip(parameters, before, strict=True):
            parameter.copy_(value)
        return loss

    def _take(self, kind: str) -> None:
        self.increments[kind] += 1
        if kind == "factorise":
            for name, linear in self.linears.items():
                assert isinstance(linear, LowRankLinear)
                factorise_anew(linear, self._rank(name, linear))

    def _cut(self) -> None:
        for name, linear in self.linears.items():
            keep = self._left(name, linear, "prune")
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
        return max(1, round(linear.rank * self._left(name, linear, "factorise")))

    def _left(self, name: str, linear: nn.Module, kind: str) -> float:
        """The share that all increments of a kind leave."""
        end = self.config.layer_keep.get(name, self.config.encoder_keep)
        if self.config.order != "svd_first":
            assert isinstance(linear, LowRankLinear)
            assert self.config.rank is not None
            end *= self.config.rank / linear.rank
        return geometric(end, self.increments[kind], self.config.increments)


@torch.no_grad()
def keep_largest(weight: Tensor, keep: float) -> None:
    """Zero all but the share `keep` of a weight, the largest by magnitude, in place."""
    dropped = weight.numel() - round(keep * weight.numel())
    if dropped:
        sizes = weight.abs()
        threshold = sizes.flatten().kthvalue(dropped).values
        weight.masked_fill_(sizes <= threshold, 0)


@torch.no_grad()
def factorise_anew(linear: LowRankLinear, rank: int) -> None:
    """Give the first `rank` slices the truncated SVD of ``u v``, and the others zeros."""
    u, v = leading_factors((linear.u.double() @ linear.v.double()), rank)
    linear.u.zero_()[:, :rank] = u.to(linear.u.dtype)
    linear.v.zero_()[:rank] = v.to(linear.v.dtype)


def _shapes(model: nn.Module) -> dict[str, tuple[int, int]]:
    """(out, in) of the encoder's linears."""
    return {n: (m.out_features, m.in_features) for n, m in encoder_linears(model).items()}


def _weights(shapes: Mapping[str, tuple[int, int]], rank: int | None) -> int:
    if rank is None:
        return sum(rows * cols for rows, cols in shapes.values())
    return sum(rank * (rows + cols) for rows, cols in shapes.values())


def _word_embedding(model: nn.Module) -> nn.Parameter:
    assert isinstance(model, PreTrainedModel)
    return model.get_input_embeddings().get_parameter("weight")
