"""Work of `lada distill`: read the data, train the student, and save it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
from transformers import (
    AutoTokenizer,
    DataCollatorWithPadding,
    EarlyStoppingCallback,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
)

from ..compression.batches import longest
from ..compression.copying import kept_files, local_folder
from ..compression.folder import load_model, save_model
from ..compression.plan import Method
from ..compression.pretrained import compression_of
from ..data.dataset import check_model, tokenized
from ..data.glue import Task, find_task, read_split
from ..data.metrics import compute_metrics
from ..data.texts import read_lines
from ..host.files import check_target, read_json
from .lada import LadaConfig
from .lada_block import LadaBlockConfig
from .losses import EMBEDDINGS, Losses, Pooling
from .recipe import Recipe
from .run import distill


@dataclass(frozen=True)
class Settings:
    """Options of `lada distill`, by the names of its parameters; None: by the teacher's type."""

    teacher: str
    folder: Path
    task: str | None
    data: Path | None
    texts: Path | None
    train_file: str | None
    dev_file: str | None
    preset: str
    ratio: float
    method: Method
    block: tuple[int, int]
    order: str | None
    embedding_keep: float | None
    pooling: Pooling | None
    labels: float
    epochs: float
    batch_size: int
    accumulate: int
    learning_rate: float | None
    dropout: bool | None
    max_length: int
    patience: int | None
    save_steps: int
    bf16: bool
    seed: int
    overwrite: bool
    quiet: bool


def run(settings: Settings) -> Mapping[str, Any] | None:
    """Train and save the student; return its `CompressionReport` as JSON.

    None where the student is not compressed (pruning without SVD), and in all but the main process.

    Raises ValueError or OSError before training on settings, data or a teacher that do not fit.
    """
    if (settings.task is None) == (settings.texts is None):
        raise ValueError("expected --task with --data, or --texts, and not both")
    if settings.task is not None and settings.data is None:
        raise ValueError("--data is missing; expected the folder with the task's files")
    tokenizer = AutoTokenizer.from_pretrained(settings.teacher)
    teacher = load_model(settings.teacher, "cpu")
    settings = with_defaults(settings, teacher)
    args = training_arguments(settings)
    if args.should_save:
        check_target(settings.folder, settings.overwrite)
        kept_files(settings.teacher, settings.folder)
    if compression_of(teacher) is not None:
        raise ValueError(f"{settings.teacher} is compressed already; expected a dense model")
    task = None if settings.task is None else find_task(settings.task)
    train, dev = _examples(settings, task, teacher, tokenizer)
    callbacks = [] if settings.patience is None else [EarlyStoppingCallback(settings.patience)]
    student = distill(
        teacher,
        recipe_of(settings, teacher),
        args,
        train,
        DataCollatorWithPadding(tokenizer),
        dev=dev,
        compute_metrics=None if task is None else compute_metrics(task),
        callbacks=callbacks,
        dropout=bool(settings.dropout),
        quiet=settings.quiet,
    )
    if not args.should_save:
        return None
    save_model(student, settings.teacher, settings.folder, settings.overwrite)
    compression = compression_of(student)
    return (
        None if compression is None else compression[1].to_dict() | {"folder": str(settings.folder)}
    )


def with_defaults(settings: Settings, teacher: PreTrainedModel) -> Settings:
    """Settings with learning rate and dropout filled in, by the type of the teacher."""
    embeds = _is_embedder(teacher)
    rate, dropout = settings.learning_rate, settings.dropout
    return replace(
        settings,
        learning_rate=rate if rate is not None else 1e-3 if embeds else 2e-4,
        dropout=dropout if dropout is not None else not embeds,
    )


def recipe_of(settings: Settings, teacher: PreTrainedModel) -> Recipe:
    """Recipe of the preset that the settings name."""
    recipe: LadaBlockConfig | LadaConfig
    order: Any = settings.order
    if settings.preset == "lada":
        recipe = LadaConfig.of_ratio(teacher, settings.ratio, settings.embedding_keep)
    else:
        recipe = LadaBlockConfig(settings.ratio, settings.method, settings.block)
    recipe = recipe if order is None else replace(recipe, order=order)
    return replace(recipe, losses=losses_of(settings, teacher))


def losses_of(settings: Settings, teacher: PreTrainedModel) -> Losses:
    """Losses by the teacher's head: the paper's for a classifier, else without logits; `EMBEDDINGS`
    for a teacher without a head.
    """
    if _is_embedder(teacher):
        pooling = settings.pooling or saved_pooling(local_folder(settings.teacher))
        return replace(EMBEDDINGS, pooling=pooling, labels=settings.labels)
    classifies = type(teacher).__name__.endswith("ForSequenceClassification")
    return Losses(logits=float(classifies), labels=settings.labels)


def _is_embedder(teacher: PreTrainedModel) -> bool:
    return teacher.base_model is teacher  # a model without a head


def saved_pooling(folder: Path) -> Pooling:
    """Pooling that a sentence-transformers model folder states; "mean" where it states none.

    Raises ValueError where it is none of those that `Losses` knows.
    """
    modules = folder / "modules.json"
    places = ["1_Pooling"]
    if modules.is_file():
        places = [
            module["path"]
            for module in read_json(modules, list)
            if module["type"].rpartition(".")[2] == "Pooling"
        ]
    paths = [path for place in places if (path := folder / place / "config.json").is_file()]
    modes = [mode for path in paths for mode in _modes(path)] if paths else ["mean"]
    known: tuple[Pooling, ...] = get_args(Pooling)
    for mode in known:
        if modes == [mode]:
            return mode
    raise ValueError(
        f"{paths[0]} pools by {', '.join(modes)}; expected one of {', '.join(known)}, or --pooling"
    )


def _modes(path: Path) -> list[str]:
    """Pooling modes in a module's config, as sentence-transformers 6 or an older one saves it."""
    saved = read_json(path, dict)
    if "pooling_mode" in saved:
        mode = saved["pooling_mode"]
        return [mode] if isinstance(mode, str) else list(mode)
    prefix = "pooling_mode_"
    flags = [name.removeprefix(prefix) for name in saved if name.startswith(prefix) and saved[name]]
    return [flag.removesuffix("_tokens").removesuffix("_token") for flag in flags] or ["mean"]


def training_arguments(settings: Settings) -> TrainingArguments:
    """Trainer arguments for settings `with_defaults`; checkpoints go to FOLDER.training."""
    assert settings.learning_rate is not None
    return TrainingArguments(
        f"{settings.folder}.training",
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=2 * settings.batch_size,
        gradient_accumulation_steps=settings.accumulate,
        learning_rate=settings.learning_rate,
        warmup_steps=0.1,
        seed=settings.seed,
        bf16=settings.bf16,
        use_cpu=not torch.cuda.is_available(),  # or Trainer refuses bf16 on a CPU
        dataloader_pin_memory=torch.cuda.is_available(),
        train_sampling_strategy="group_by_length",
        eval_strategy="epoch" if settings.texts is None else "no",
        save_strategy="steps" if settings.patience is None else "epoch",
        save_steps=settings.save_steps,
        save_total_limit=2,
        load_best_model_at_end=settings.patience is not None,
        metric_for_best_model=None if settings.patience is None else "loss",
        logging_steps=50,
        disable_tqdm=settings.quiet,
        report_to=[],
    )


def _examples(
    settings: Settings,
    task: Task | None,
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
    length = min(settings.max_length, longest(teacher))
    if task is None:
        assert settings.texts is not None
        lines = read_lines(settings.texts, "--texts")
        encoded = tokenizer(lines, truncation=True, max_length=length)
        count = len(encoded["input_ids"])
        return [{name: encoded[name][i] for name in encoded} for i in range(count)], None
    assert settings.data is not None
    check_model(teacher, tokenizer, task)
    train = read_split(settings.data, task, "train", settings.train_file)
    dev = read_split(settings.data, task, "dev", settings.dev_file)
    return tokenized(tokenizer, train, length), tokenized(tokenizer, dev, length)
