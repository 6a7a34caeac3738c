"""Distillation losses: terms between the outputs of a student and of its teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

Pooling: TypeAlias = Literal["mean", "cls"]
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)
TERMS = ("attention", "hidden", "logits", "embedding", "pooled", "labels")


class NotFinite(RuntimeError):
    """NaN or infinity in a loss or a gradient, raised before an optimizer step or a checkpoint."""


@dataclass(frozen=True)
class Losses:
    """Weights of the loss terms, each 0 or more, not all 0; the defaults are the paper's.

    attention: MSE of attention scores, summed over layers. hidden: MSE of hidden states, summed
    over layers. logits: soft cross-entropy at `temperature`, times its square; MSE for regression.
    embedding: MSE of the embedding layer's outputs. pooled: 1 - cosine of text embeddings, pooled
    from the last hidden states: their mean, or with `pooling` "cls" the first. labels: the task's
    own loss.

    Source: LadaBERT (Mao et al., COLING 2020), section 3.3, unweighted as in its code; for pooled,
    Reimers and Gurevych (EMNLP 2020), whose MSE is twice this for embeddings of length 1.
    """

    attention: float = 1.0
    hidden: float = 1.0
    logits: float = 1.0
    embedding: float = 0.0
    pooled: float = 0.0
    labels: float = 0.0
    temperature: float = 1.0
    pooling: Pooling = "mean"

    def __post_init__(self) -> None:
        for name, weight in self.weights.items():
            if not 0 <= weight < float("inf"):
                raise ValueError(f"Losses: {name} {weight}; expected 0 or more")
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"Losses: temperature {self.temperature}; expected above 0")
        if self.pooling not in POOLINGS:
            raise ValueError(f"Losses: pooling {self.pooling!r}; expected one of {POOLINGS}")
        if not any(self.weights.values()):
            raise ValueError("Losses: every weight is 0; expected one above 0")

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each term, by its name."""
        return {name: getattr(self, name) for name in TERMS}

    @property
    def needs_hidden(self) -> bool:
        """True if a term needs hidden states."""
        return bool(self.hidden or self.embedding or self.pooled)

    @property
    def needs_teacher(self) -> bool:
        """True if a term needs the teacher's outputs."""
        return self.needs_hidden or bool(self.attention or self.logits)


EMBEDDINGS = Losses(attention=0, hidden=0, logits=0, pooled=1)
"""Losses of a text embedder, which has no head: its pooled embeddings alone."""


@dataclass(frozen=True)
class Outputs:
    """Outputs of a model for a batch.

    loss: the task's own, None without labels. logits: (batch, labels), None for a model without a
    head. hidden: (batch, length, features), of the embedding layer, then of each layer. scores:
    (batch, heads, length, length) of each layer, before the mask and the softmax.
    """

    loss: Tensor | None
    logits: Tensor | None
    hidden: Sequence[Tensor] = ()
    scores: Sequence[Tensor] = ()


def terms(
    losses: Losses,
    student: Outputs,
    teacher: Outputs | None,
    mask: Tensor,
    regression: bool = False,
) -> dict[str, Tensor]:
    """Unweighted terms, means over the batch, by name; terms of weight 0 are left out.

    mask: (batch, length), 1 at tokens, 0 at padding, which is left out of every term. Layers are
    paired as in `layer_pairs`.

    Raises ValueError where the models' sizes do not fit, or where labels or logits are missing.
    """
    computed: dict[str, Tensor] = {}
    if losses.labels:
        if student.loss is None:
            raise ValueError("Losses: labels above 0 for data without labels; expected 0")
        computed["labels"] = student.loss
    if teacher is None:
        return computed
    mask = mask.bool()
    if losses.logits:
        if student.logits is None or teacher.logits is None:
            raise ValueError("Losses: logits above 0 for a model without a head; expected 0")
        computed["logits"] = _logits(student.logits, teacher.logits, losses.temperature, regression)
    if losses.embedding:
        computed["embedding"] = _hidden(student.hidden[0], teacher.hidden[0], mask)
    if losses.hidden:
        pairs = layer_pairs(student.hidden[1:], teacher.hidden[1:])
        computed["hidden"] = torch.stack([_hidden(s, t, mask) for s, t in pairs]).sum()
    if losses.pooled:
        computed["pooled"] = _pooled(student.hidden[-1], teacher.hidden[-1], mask, losses.pooling)
    if losses.attention:
        pairs = layer_pairs(student.scores, teacher.scores)
        computed["attention"] = torch.stack([_scores(s, t, mask) for s, t in pairs]).sum()
    return computed


def total(losses: Losses, values: Mapping[str, Tensor]) -> Tensor:
    """Weighted sum of the terms."""
    return torch.stack([losses.weights[name] * term for name, term in values.items()]).sum()


def layer_pairs(student: Sequence[Any], teacher: Sequence[Any]) -> list[tuple[Any, Any]]:
    """Pairs of a student's layer and its teacher's: every k-th of the teacher's, up to its last.

    Raises ValueError where the student's number of layers does not divide the teacher's.
    """
    if not student or len(teacher) % len(student):
        raise ValueError(
            f"Losses: a student of {len(student)} layers and a teacher of {len(teacher)}; expected "
            "a number that divides the teacher's"
        )
    step = len(teacher) // len(student)
    return list(zip(student, teacher[step - 1 :: step], strict=True))


def _logits(student: Tensor, teacher: Tensor, temperature: float, regression: bool) -> Tensor:
    if student.shape != teacher.shape:
        raise ValueError(
            f"Losses: logits {tuple(student.shape)} of the student, {tuple(teacher.shape)} of the "
            "teacher; expected the same labels"
        )
    if regression:
        return F.mse_loss(student, teacher)
    soft = (teacher / temperature).softmax(-1)
    return F.cross_entropy(student / temperature, soft) * temperature**2


def _hidden(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    _check_width("hidden", student, teacher)
    return F.mse_loss(student[mask], teacher[mask])


def _pooled(student: Tensor, teacher: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    _check_width("pooled", student, teacher)
    s, t = (_embeddings(hidden, mask, pooling) for hidden in (student, teacher))
    return 1 - F.cosine_similarity(s, t, dim=-1).mean()


def _check_width(name: str, student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape:
        raise ValueError(
            f"Losses: hidden states of {student.shape[-1]} features in the student, "
            f"{teacher.shape[-1]} in the teacher; expected the same width, or {name} 0"
        )


def _embeddings(hidden: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """Text embeddings (batch, features), not normalized: the cosine does not see their length."""
    return hidden[:, 0] if pooling == "cls" else hidden.masked_fill(~mask[..., None], 0).sum(1)


def _scores(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    if student.shape != teacher.shape:
        raise ValueError(
            f"Losses: {student.shape[1]} heads in the student, {teacher.shape[1]} in the teacher; "
            "expected as many, or attention 0"
        )
    pairs = mask[:, None, :, None] & mask[:, None, None, :]
    squares = (student - teacher).float().square().masked_fill(~pairs, 0)
    return squares.sum() / (pairs.sum() * student.shape[1])
