"""`evaluate`: one row for the teacher, and one for each way to serve the student."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..architectures.encoders import ENCODER_LINEARS
from ..compression.batches import longest
from ..compression.folder import load_model
from ..compression.replacement import model_bytes
from ..data.dataset import check_model, tokenized
from ..data.glue import Examples, Task, find_task, read_split
from ..data.metrics import scores
from ..formats.counts import Counts
from ..host.extras import require
from ..latency.bench import ServedModels
from ..modules.compressed_linear import CompressedLinear
from .loyalty import label_loyalty, probability_loyalty
from .robustness import read_attacked, robustness

BATCH = 64
MAX_LENGTH = 128


def evaluate(
    folder: str,
    teacher: str,
    data: Path,
    task: str,
    *,
    dev_file: str | None = None,
    sizes: Mapping[str, tuple[int, int]],
    rounds: int = 15,
    threads: int | None = None,
) -> dict[str, Any]:
    """What the student in `folder` is worth beside its teacher, as JSON.

    data: as for `read_split`. sizes: batch and length to time, by label.
    Of each model: size and work of the encoder's linears (`Counts`), bytes of the whole, the task's
    scores, loyalty to the teacher, accuracy on texts that were changed to fool another BERT, and
    latency over the teacher's in one run. A student is timed as loaded, and as `optimize` makes it
    in every dtype it can, whose answers have a row each. missing: "robustness" -> why it is left
    out, where the task has such texts and the folder does not.

    Raises ValueError or OSError on models or data that do not fit, ImportError where packages are
    not installed, before anything is computed.
    """
    require("lada eval", "train", "scipy", "sklearn")
    about = find_task(task)
    examples = read_split(data, about, "dev", dev_file)
    attacked, missing = None, {}
    try:
        attacked = read_attacked(data, about)
    except FileNotFoundError as error:
        missing["robustness"] = str(error)
    dense, student = load_model(teacher), load_model(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    check_same_words(AutoTokenizer.from_pretrained(teacher), tokenizer)
    for model in (dense, student):
        check_model(model, tokenizer, about)
    bench = ServedModels.of_models(folder, dense, student)
    bench.check_sizes(sizes)
    linears = names_of_linears(dense, student)
    want = logits_of(dense, tokenizer, examples, about)
    rows = []
    for name, model in {"teacher": dense, **bench.models}.items():
        got = want if model is dense else logits_of(model, tokenizer, examples, about)
        held = bench.references.get(name, model)
        row = {
            "name": name,
            "linears": asdict(linears_counts(held, linears)),
            "model_bytes": model_bytes(held),
            "scores": scores(about, got, examples.labels),
        }
        if not about.regression:
            row["label_loyalty"] = label_loyalty(want, got)
            row["probability_loyalty"] = probability_loyalty(want, got)
        if attacked is not None:
            row["robustness"] = robustness(
                attacked,
                lambda texts, model=model: logits_of(model, tokenizer, texts, about),
            )
        rows.append(row)
    return {
        "task": task,
        "metric": about.metric,
        "examples": len(examples),
        "models": rows,
        "missing": missing,
        **bench.shapes(sizes, rounds, threads),
    }


@torch.inference_mode()
def logits_of(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, examples: Examples, task: Task
) -> np.ndarray:
    """The logits (examples, labels) fp64, in the order of the examples."""
    inputs = tokenized(tokenizer, examples, min(MAX_LENGTH, longest(model)))
    order = sorted(range(len(inputs)), key=lambda i: len(inputs[i]["input_ids"]))
    logits = np.empty((len(inputs), task.num_labels))
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        batch = [{k: v for k, v in inputs[i].items() if k != "labels"} for i in chosen]
        padded = tokenizer.pad(batch, return_tensors="pt").to(model.device)
        logits[chosen] = model(**padded).logits.double().cpu().numpy()
    return logits


def names_of_linears(*models: nn.Module) -> list[str]:
    """The linears of the models' encoders, and all others that one of them has compressed."""
    return sorted(
        {
            name
            for model in models
            for name, module in model.named_modules()
            if isinstance(module, CompressedLinear)
            or (type(module) is nn.Linear and re.search(ENCODER_LINEARS, name))
        }
    )


def linears_counts(model: nn.Module, names: Iterable[str]) -> Counts:
    """What a model's linears of these names cost as they are now, those of them that it has."""
    modules, total = dict(model.named_modules()), Counts()
    for module in (modules[name] for name in names if name in modules):  # a student may have fewer
        if isinstance(module, CompressedLinear):
            total += module.counts()
            continue
        for parameter, flops in ((module.weight, 2), (module.bias, 1)):
            total += Counts() if parameter is None else Counts.of(parameter, flops)  # type: ignore[arg-type]
    return total


def check_same_words(teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase) -> None:
    """Raise ValueError unless both tokenizers have the same words with the same ids."""
    if teacher.get_vocab() != student.get_vocab():
        raise ValueError(
            f"the tokenizers differ: the teacher's has {len(teacher)} tokens, the student's "
            f"{len(student)}, or others; expected a student of this teacher"
        )
