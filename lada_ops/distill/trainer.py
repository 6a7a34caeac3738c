"""Hugging Face's Trainer with a distillation loss."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import TRAINER_STATE_NAME

from ..host.files import read_json
from .losses import Losses, NotFinite, terms, total
from .outputs import forward
from .pruner import PruningCallback


class DistillationTrainer(Trainer):
    """A `transformers.Trainer` whose loss is `losses` between the model and a teacher.

    teacher: a model with the same tokenizer, moved to the Trainer's device and set to eval mode;
    may be None where no term needs it. Checkpoints, resuming, accumulation, mixed precision,
    several processes and logs are Trainer's own. Each log also holds the terms, as means since the
    last log.

    Raises NotFinite where the loss or a gradient is NaN or infinite, before the optimizer step and
    before a checkpoint is written, so the last checkpoint stays good.
    """

    # the loss is a mean over a batch: Trainer has to divide it by the accumulation steps
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        *,
        losses: Losses,
        teacher: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        if teacher is None and losses.needs_teacher:
            raise ValueError("DistillationTrainer: teacher None for losses that need one")
        super().__init__(model, args, **kwargs)
        self.add_callback(_FiniteGradients(self))
        self.model_accepts_loss_kwargs = False
        self.losses = losses
        self.teacher = teacher
        if teacher is not None:
            teacher.to(args.device).eval()
        self._sums: dict[str, float] = defaultdict(float)
        self._count = 0

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        student = forward(model, inputs, self.losses)
        teacher = None
        if self.teacher is not None and self.losses.needs_teacher:
            with torch.no_grad():
                teacher = forward(self.teacher, inputs, self.losses)
        regression = getattr(self.model, "num_labels", 0) == 1
        values = terms(self.losses, student, teacher, inputs["attention_mask"], regression)
        loss = total(self.losses, values)
        if not loss.isfinite():
            raise NotFinite(
                f"the loss is {loss.item()} at step {self.state.global_step + 1}: "
                f"{ {name: term.item() for name, term in values.items()} }; expected a finite one: "
                "a lower learning rate, or a last checkpoint from before it went astray"
            )
        if model.training:
            self._count += 1
            for name, term in values.items():
                self._sums[name] += float(term.detach())
        return (loss, {"loss": loss, "logits": student.logits}) if return_outputs else loss

    @torch.no_grad()
    def loss_of(self, batches: Iterable[Mapping[str, Any]]) -> float:
        """Mean loss of the model over batches, without dropout."""
        model = self.model
        assert model is not None
        training = model.training
        model.eval()
        try:
            losses = []
            for batch in batches:
                inputs = self._prepare_inputs(dict(batch))
                with self.compute_loss_context_manager():
                    losses.append(float(self.compute_loss(model, inputs)))
        finally:
            model.train(training)
        return sum(losses) / len(losses)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        # a model that is not yet fully pruned is better because it is larger: it must not win
        callbacks = self.callback_handler.callbacks
        if not all(c.pruner.done for c in callbacks if isinstance(c, PruningCallback)):
            return False
        return super()._determine_best_metric(metrics, trial)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._count:
            means = {f"loss_{name}": value / self._count for name, value in self._sums.items()}
            logs = logs | means
            self._sums.clear()
            self._count = 0
        super().log(logs, start_time)


class _FiniteGradients(TrainerCallback):
    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **_: Any,
    ) -> None:
        assert model is not None
        if self.trainer.accelerator.scaler is not None:
            return  # the gradient scaler skips such steps itself, and lowers its scale
        norms = [p.grad.norm() for p in model.parameters() if p.grad is not None]
        if not math.isfinite(float(torch.stack(norms).sum())):
            raise NotFinite(
                f"a gradient is NaN or infinite at step {state.global_step + 1}; expected finite "
                "ones: a lower learning rate, or bf16 in the place of fp16"
            )


def last_checkpoint(folder: Path) -> Path | None:
    """Newest complete checkpoint in `folder`, or None.

    A Trainer writes its state last: an incomplete checkpoint has none, or one cut short.
    """
    checkpoints = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    for path in reversed(checkpoints):
        try:
            read_json(path / TRAINER_STATE_NAME, dict)
        except (OSError, ValueError):
            continue
        return path
    return None
