"""Pruning during training: the pruner interface, and structured pruning by importance scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from .schedules import Span, cubic
from .units import UnitGrid, select_units

Score = Literal["second_order", "movement"]
SCORES: tuple[Score, ...] = get_args(Score)


class Pruner(ABC):
    """Pruner of a model's weights, called around every optimizer step."""

    def observe(self) -> None:  # noqa: B027  (most pruners score weights alone)
        """Accumulate scores from the gradients, before the optimizer's step."""

    @abstractmethod
    def prune(self, step: int, steps: int) -> None:
        """Zero the weights due at `step` (from 1) of `steps`, after the optimizer's step."""

    @property
    @abstractmethod
    def done(self) -> bool:
        """True once the target size is reached."""

    def state(self) -> dict[str, Any]:
        """State that a resumed run needs, as JSON."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Restore a saved `state`."""


class UnitPruner(Pruner):
    """Structured pruner: drops units of least importance per byte until `target` bytes are left.

    Units of all layers compete; the bytes left follow the cubic schedule within `span`. Importance
    of a unit w by `score`: "second_order" is the running mean of ``<dL/dw, w>^2``, twice the
    increase of the loss without w under the empirical Fisher (Optimal Brain Damage on units; the
    block saliency of oBERT, Kurtic et al., EMNLP 2022); "movement" is the sum of ``-<dL/dw, w>``
    (Lagunas et al., EMNLP 2021). A dropped unit stays dropped: a rank slice of zeros gets no
    gradient.
    """

    decay = 0.95  # of the running mean, over about 20 batches

    def __init__(
        self, grids: Sequence[UnitGrid], target: float, span: Span, score: Score = "second_order"
    ) -> None:
        if score not in SCORES:
            raise ValueError(f"UnitPruner: score {score!r}; expected one of {SCORES}")
        self.grids, self.target, self.span, self.score = list(grids), target, span, score
        self.start = sum(int(grid.present.sum()) * grid.unit_bytes for grid in self.grids)
        self.importance = [torch.zeros_like(g.present, dtype=torch.float32) for g in self.grids]
        self.kept = [grid.present for grid in self.grids]
        self.progress = 0.0

    def observe(self) -> None:
        gradients = [grid.gate_gradients() for grid in self.grids]
        if not all(gradient.isfinite().all() for gradient in gradients):
            return  # the gradient scaler will skip this step
        for importance, gradient in zip(self.importance, gradients, strict=True):
            if self.score == "movement":
                importance.sub_(gradient)
            else:
                importance.lerp_(gradient.square(), 1 - self.decay)

    def prune(self, step: int, steps: int) -> None:
        self.progress = self.span.progress(step, steps)
        if self.progress > 0:
            budget = cubic(self.start, self.target, self.progress)
            scores = [
                importance.masked_fill(~kept, -torch.inf)
                for importance, kept in zip(self.importance, self.kept, strict=True)
            ]
            self.kept = select_units(self.grids, scores, budget)
        for grid, kept in zip(self.grids, self.kept, strict=True):
            grid.zero(~kept)

    @property
    def done(self) -> bool:
        return self.progress == 1

    def state(self) -> dict[str, Any]:
        return {
            "progress": self.progress,
            "worth": [importance.flatten().tolist() for importance in self.importance],
            "kept": [kept.flatten().int().tolist() for kept in self.kept],
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.importance = _loaded(self.importance, state["worth"])
        self.kept = _loaded(self.kept, state["kept"])


def _loaded(tensors: Sequence[Tensor], saved: Sequence[Sequence[float]]) -> list[Tensor]:
    """Saved values as tensors of the same dtype, device and shape as `tensors`."""
    return [
        torch.tensor(values, dtype=tensor.dtype, device=tensor.device).view(tensor.shape)
        for tensor, values in zip(tensors, saved, strict=True)
    ]


class PruningCallback(TrainerCallback, ExportableState):
    """Trainer callback that runs a `Pruner` at every step and saves its state in checkpoints."""

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
