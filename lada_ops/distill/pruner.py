"""Pruning while training: what a pruner does at each step, and units dropped by their worth."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from .schedules import Span, cubic
from .units import Units, best

Score = Literal["second_order", "movement"]
SCORES: tuple[Score, ...] = get_args(Score)


class Pruner(ABC):
    """What is done to a model's weights around every optimizer step."""

    def observe(self) -> None:  # noqa: B027  (most look at weights alone)
        """Look at the gradients, before the optimizer's step."""

    @abstractmethod
    def prune(self, step: int, steps: int) -> None:
        """Zero what `step` of `steps`, from 1, is to be without; after the optimizer's step."""

    @property
    @abstractmethod
    def done(self) -> bool:
        """Whether the model is as small as it is to be."""

    def state(self) -> dict[str, Any]:
        """What a resumed run has to know, as JSON."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Go on from `state`."""


class UnitPruner(Pruner):
    """Drops the units of least worth per byte, over all layers, until `target` bytes are left.

    The bytes left follow the cubic schedule within `span`. A unit w is worth, by "second_order",
    the mean of ``<dL/dw, w>^2``, of which half is the loss expected without it under the empirical
    Fisher (Optimal Brain Damage with units; the block saliency of oBERT, Kurtic et al., EMNLP
    2022); or by "movement" the sum of ``-<dL/dw, w>`` (Lagunas et al., EMNLP 2021). What is
    dropped stays so: no gradient reaches a rank slice of zeros.
    """

    decay = 0.95  # of the running mean: some 20 batches

    def __init__(
        self, units: Sequence[Units], target: float, span: Span, score: Score = "second_order"
    ) -> None:
        if score not in SCORES:
            raise ValueError(f"UnitPruner: score {score!r}; expected one of {SCORES}")
        self.units, self.target, self.span, self.score = list(units), target, span, score
        self.start = sum(int(of.present.sum()) * of.price for of in self.units)
        self.worth = [torch.zeros_like(of.present, dtype=torch.float32) for of in self.units]
        self.kept = [of.present for of in self.units]
        self.progress = 0.0

    def observe(self) -> None:
        slopes = [of.slopes() for of in self.units]
        if not all(slope.isfinite().all() for slope in slopes):
            return  # a step that a gradient scaler will skip
        for worth, slope in zip(self.worth, slopes, strict=True):
            if self.score == "movement":
                worth.sub_(slope)
            else:
                worth.lerp_(slope.square(), 1 - self.decay)

    def prune(self, step: int, steps: int) -> None:
        self.progress = self.span.progress(step, steps)
        if self.progress > 0:
            budget = cubic(self.start, self.target, self.progress)
            scores = [
                worth.masked_fill(~kept, -torch.inf)
                for worth, kept in zip(self.worth, self.kept, strict=True)
            ]
            self.kept = best(self.units, scores, budget)
        for of, kept in zip(self.units, self.kept, strict=True):
            of.zero(~kept)

    @property
    def done(self) -> bool:
        return self.progress == 1

    def state(self) -> dict[str, Any]:
        return {
            "progress": self.progress,
            "worth": [worth.flatten().tolist() for worth in self.worth],
            "kept": [kept.flatten().int().tolist() for kept in self.kept],
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.worth = [
            _like(mine, new) for mine, new in zip(self.worth, state["worth"], strict=True)
        ]
        self.kept = [_like(mine, new) for mine, new in zip(self.kept, state["kept"], strict=True)]


def _like(mine: Tensor, values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=mine.dtype, device=mine.device).view(mine.shape)


class PruningCallback(TrainerCallback, ExportableState):
    """Has a `Pruner` follow a Trainer's steps; its state is kept in every checkpoint."""

    def __init__(self, pruner: Pruner) -> None:
        self.pruner = pruner

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": self.pruner.state()}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        saved = state.stateful_callbacks
        if state.global_step and saved is not None:
            self.pruner.load_state(saved[type(self).__name__]["attributes"])  # type: ignore[index]

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.pruner.observe()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.pruner.prune(state.global_step + 1, state.max_steps)
