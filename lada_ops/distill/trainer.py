"""Hugging Face's Trainer with a teacher."""

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
from .answers import ask
from .losses import Losses, NotFinite, terms, total
from .pruner import PruningCallback


class DistillationTrainer(Trainer):
    """A `transformers.Trainer` whose loss is that of `losses` between the model and a teacher.

    teacher: a model of the same tokenizer; it is put on the Trainer's device in eval mode,
    and may be None where no term needs it. Everything else is Trainer's own:
    checkpoints, resuming, accumulation, mixed precision, several processes, logs. The terms are
    logged beside the loss, as means since the last log.

    Raises NotFinite, before a step is taken or a checkpoint written, where the loss or a gradient
    is NaN or infinite; the last checkpoint is then as it was.
    """

    # the loss is a mean over a batch, so Trainer is to divide it by the steps that accumulate
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
        if teacher is None and losses.of_teacher:
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
        student = ask(model, inputs, self.losses)
        taught = None
        if self.teacher is not None and self.losses.of_teacher:
            with torch.no_grad():
                taught = ask(self.teacher, inputs, self.losses)
        regression = getattr(self.model, "num_labels", 0) == 1
        found = terms(self.losses, student, taught, inputs["attention_mask"], regression)
        loss = total(self.losses, found)
        if not loss.isfinite():
            raise NotFinite(
                f"the loss is {loss.item()} at step {self.state.global_step + 1}: "
                f"{ {name: term.item() for name, term in found.items()} }; expected a finite one: "
                "a lower learning rate, or a last checkpoint from before it went astray"
            )
        if model.training:
            self._count += 1
            for name, term in found.items():
                self._sums[name] += float(term.detach())
        return (loss, {"loss": loss, "logits": student.logits}) if return_outputs else loss

    @torch.no_grad()
    def loss_of(self, batches: Iterable[Mapping[str, Any]]) -> float:
        """The mean loss of the model, without dropout, over batches."""
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
        # a model that is not pruned to the end yet is better, and larger: it must not win
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
            return  # it skips such steps, and lowers its scale
        norms = [p.grad.norm() for p in model.parameters() if p.grad is not None]
        if not math.isfinite(float(torch.stack(norms).sum())):
            raise NotFinite(
                f"a gradient is NaN or infinite at step {state.global_step + 1}; expected finite "
                "ones: a lower learning rate, or bf16 in the place of fp16"
            )


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint in `folder` that was written to its end; None if there is none.

    A Trainer writes its state last: a checkpoint that was cut short has none, or half of one.
    """
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    for path in reversed(found):
        try:
            read_json(path / TRAINER_STATE_NAME, dict)
        except (OSError, ValueError):
            continue
        return path
    return None
