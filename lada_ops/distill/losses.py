"""What a student is asked to have in common with its teacher."""

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
    """A loss or a gradient became NaN or infinite; nothing was stepped with it, or saved."""


@dataclass(frozen=True)
class Losses:
    """Weights of the terms of the loss, each 0 or more, not all 0. The paper's own are the default.

    attention: MSE of attention scores, summed over layers. hidden: MSE of hidden states, summed
    over layers. logits: soft cross-entropy at `temperature`, scaled by its square; of a regression
    the MSE. embedding: MSE of what the embeddings give. pooled: 1 less the cosine of whole texts,
    each the mean of its last hidden states, or by `pooling` "cls" the first of them. labels: what
    the task itself asks.

    Source: LadaBERT (Mao et al., COLING 2020), section 3.3, unweighted, as its code has it; for
    pooled, Reimers and Gurevych (EMNLP 2020), whose MSE is twice this at length 1.
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
        """By the name of the term."""
        return {name: getattr(self, name) for name in TERMS}

    @property
    def of_hidden(self) -> bool:
        """Whether any term needs hidden states."""
        return bool(self.hidden or self.embedding or self.pooled)

    @property
    def of_teacher(self) -> bool:
        """Whether any term needs the teacher."""
        return self.of_hidden or bool(self.attention or self.logits)


EMBEDDINGS = Losses(attention=0, hidden=0, logits=0, pooled=1)
"""For a model without a head, which is there for its embeddings of texts."""


@dataclass(frozen=True)
class Answer:
    """What a model gave for a batch.

    loss: the task's own, None without labels. logits: None for a model without a head.
    hidden: (batch, length, features) of the embeddings first, then of each layer. scores: (batch,
    heads, length, length) per layer, before the mask and the softmax.
    """

    loss: Tensor | None
    logits: Tensor | None
    hidden: Sequence[Tensor] = ()
    scores: Sequence[Tensor] = ()


def terms(
    losses: Losses, student: Answer, teacher: Answer | None, mask: Tensor, regression: bool = False
) -> dict[str, Tensor]:
    """Each term that counts, not yet weighted, as a mean over the batch.

    mask (batch, length): 1 at tokens, 0 at padding, which counts in no term. A student of fewer
    layers follows every k-th of the teacher's, the last by the last.

    Raises ValueError where the models' sizes do not fit, or labels or logits are asked for and
    missing.
    """
    found: dict[str, Tensor] = {}
    if losses.labels:
        if student.loss is None:
            raise ValueError("Losses: labels above 0 for data without labels; expected 0")
        found["labels"] = student.loss
    if teacher is None:
        return found
    mask = mask.bool()
    if losses.logits:
        if student.logits is None or teacher.logits is None:
            raise ValueError("Losses: logits above 0 for a model without a head; expected 0")
        found["logits"] = _logits(student.logits, teacher.logits, losses.temperature, regression)
    if losses.embedding:
        found["embedding"] = _hidden(student.hidden[0], teacher.hidden[0], mask)
    if losses.hidden:
        pairs = followed(student.hidden[1:], teacher.hidden[1:])
        found["hidden"] = torch.stack([_hidden(s, t, mask) for s, t in pairs]).sum()
    if losses.pooled:
        found["pooled"] = _pooled(student.hidden[-1], teacher.hidden[-1], mask, losses.pooling)
    if losses.attention:
        pairs = followed(student.scores, teacher.scores)
        found["attention"] = torch.stack([_scores(s, t, mask) for s, t in pairs]).sum()
    return found


def total(losses: Losses, found: Mapping[str, Tensor]) -> Tensor:
    """The weighted sum of what `terms` found."""
    return torch.stack([losses.weights[name] * term for name, term in found.items()]).sum()


def followed(student: Sequence[Any], teacher: Sequence[Any]) -> list[tuple[Any, Any]]:
    """Each of the student's layers with the one of the teacher's that it follows."""
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
    s, t = (_text(hidden, mask, pooling) for hidden in (student, teacher))
    return 1 - F.cosine_similarity(s, t, dim=-1).mean()


def _check_width(name: str, student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape:
        raise ValueError(
            f"Losses: hidden states of {student.shape[-1]} features in the student, "
            f"{teacher.shape[-1]} in the teacher; expected the same width, or {name} 0"
        )


def _text(hidden: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """A vector per text, (batch, features), up to its length."""
    return hidden[:, 0] if pooling == "cls" else hidden.masked_fill(~mask[..., None], 0).sum(1)


def _scores(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    if student.shape != teacher.shape:
        raise ValueError(
            f"Losses: {student.shape[1]} heads in the student, {teacher.shape[1]} in the teacher; "
            "expected as many, or attention 0"
        )
    seen = mask[:, None, :, None] & mask[:, None, None, :]
    squares = (student - teacher).float().square().masked_fill(~seen, 0)
    return squares.sum() / (seen.sum() * student.shape[1])
