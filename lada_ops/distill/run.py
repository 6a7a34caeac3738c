"""Distillation run: all stages of a recipe, resumed where an earlier run was interrupted."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel, TrainerCallback, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from ..compression.folder import load_whole
from ..host.files import read_json, staged_folder, write_json
from .pruner import PruningCallback
from .recipe import Recipe
from .trainer import DistillationTrainer, last_checkpoint

Model = TypeVar("Model", bound=PreTrainedModel)
Collator: TypeAlias = Callable[[Any], Mapping[str, Any]]

CALIBRATION_EXAMPLES = 2048
PROBE_EXAMPLES = 128
BATCH = 32  # examples per batch, outside training


def distill(
    teacher: Model,
    recipe: Recipe,
    args: TrainingArguments,
    train: Sequence[Mapping[str, Any]],
    collator: Collator,
    *,
    dev: Sequence[Mapping[str, Any]] | None = None,
    compute_metrics: Callable[..., dict[str, float]] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    dropout: bool = True,
    quiet: bool = False,
) -> Model:
    """Student that `recipe` makes of a copy of `teacher` and trains on `train`, in eval mode.

    train, dev: examples, dicts of the model's inputs, batched by `collator`. args: arguments of
    Hugging Face's Trainer, with the meaning they have there; checkpoints go to output_dir. A second
    call resumes from the last complete checkpoint, on the same trajectory, or returns the student
    at once if training is done. callbacks: copied for the Trainer of each stage. dropout: True
    trains with the dropout of the student's config, False without.

    With load_best_model_at_end or early stopping, only fully pruned models compete for the best.
    Every process of a `torchrun` or `accelerate launch` makes the same call.

    Raises ValueError where the recipe does not fit the teacher, or output_dir holds another run;
    NotFinite as `DistillationTrainer` does.
    """
    recipe.check(teacher)
    if args.output_dir is None:
        raise ValueError("distill: args.output_dir None; expected a folder for checkpoints")
    work = Path(args.output_dir)
    description = _description(recipe, teacher, args, len(train), dropout)
    with args.main_process_first(local=False):
        _check_same_run(work / "run.json", description)
    model = copy.deepcopy(teacher)
    for number, stage in enumerate(recipe.stages, 1):
        folder = work / f"{number}-{stage}"
        with args.main_process_first(local=False):
            if not (folder / "start").exists():
                recipe.build(
                    stage, nn.Module.to(model, args.device), _batches(train, collator), quiet
                )
                _save(model, folder / "start")
        if not (folder / "trained").exists():
            model = _to_train(type(teacher), folder / "start", teacher.dtype, args, dropout)
            trainer = _trainer(
                *(teacher, model, recipe, stage, args, folder),
                train_dataset=train,
                eval_dataset=dev,
                data_collator=collator,
                compute_metrics=compute_metrics,
                callbacks=[copy.deepcopy(callback) for callback in callbacks],
            )
            checkpoint = last_checkpoint(folder)
            trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
            if args.should_save:
                _save(model, folder / "trained", trainer)
            trainer.accelerator.wait_for_everyone()
        model = load_whole(type(teacher), folder / "trained", dtype=teacher.dtype)
    recipe.finish(model)
    return model.eval()


def _to_train(
    model_class: type[Model],
    folder: Path,
    dtype: torch.dtype,
    args: TrainingArguments,
    dropout: bool,
) -> Model:
    # on a CPU, sdpa's backward in bf16 takes several times as long as eager's
    attention = "eager" if args.device.type == "cpu" else None
    model = load_whole(model_class, folder, dtype=dtype, attn_implementation=attention)
    for module in model.modules():
        if isinstance(module, nn.Dropout) and not dropout:
            module.p = 0.0
    nn.Module.to(model, args.device)  # before the pruner makes its tensors there
    return model


def _trainer(
    teacher: PreTrainedModel,
    model: PreTrainedModel,
    recipe: Recipe,
    stage: str,
    args: TrainingArguments,
    folder: Path,
    callbacks: list[TrainerCallback],
    **options: Any,
) -> DistillationTrainer:
    def probe() -> float:
        batches = _batches(options["train_dataset"], options["data_collator"], PROBE_EXAMPLES)
        return trainer.loss_of(batches)

    pruner = recipe.pruner(stage, model, args.num_train_epochs, probe)
    args = copy.copy(args)
    args.output_dir = str(folder)
    if pruner is not None:
        callbacks = [PruningCallback(pruner), *callbacks]
    trainer = DistillationTrainer(
        model,
        args,
        losses=recipe.losses,
        teacher=teacher if recipe.losses.needs_teacher else None,
        callbacks=callbacks,
        **options,
    )
    return trainer


def _batches(
    examples: Sequence[Mapping[str, Any]], collator: Collator, count: int = CALIBRATION_EXAMPLES
) -> list[Mapping[str, Any]]:
    """Batches of at most `count` examples spread over the data, sorted by length to pad little."""
    step = max(1, len(examples) // count)
    chosen = [examples[i] for i in range(0, len(examples), step)][:count]
    chosen.sort(key=lambda example: len(example["input_ids"]))
    return [collator(chosen[i : i + BATCH]) for i in range(0, len(chosen), BATCH)]


def _save(model: PreTrainedModel, folder: Path, trainer: DistillationTrainer | None = None) -> None:
    with staged_folder(folder) as stage:
        model.save_pretrained(stage)
        if trainer is not None:
            trainer.state.save_to_json(str(stage / TRAINER_STATE_NAME))


def _description(
    recipe: Recipe, teacher: nn.Module, args: TrainingArguments, examples: int, dropout: bool
) -> dict[str, Any]:
    """Settings that the trajectory of a run depends on, as JSON."""
    names = (
        *("num_train_epochs", "max_steps", "per_device_train_batch_size", "learning_rate", "seed"),
        *("gradient_accumulation_steps", "world_size", "warmup_steps", "weight_decay"),
        *("bf16", "fp16"),
    )
    return json.loads(
        json.dumps(
            {
                "recipe": recipe.to_dict(),
                "teacher": _digest(teacher),
                "examples": examples,
                "dropout": dropout,
                **{name: getattr(args, name) for name in names},
            }
        )
    )


def _check_same_run(path: Path, description: Mapping[str, Any]) -> None:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, description)
        return
    saved = read_json(path, dict)
    for name, value in description.items():
        if saved.get(name) != value:
            raise ValueError(
                f"{path.parent} holds another run: its {name} is {saved.get(name)}, this one's is "
                f"{value}; expected the same, or another folder"
            )


def _digest(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
