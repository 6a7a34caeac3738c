"""Evaluation of a teacher, its student, and the student optimized in each dtype."""

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
from ..data.texts import MAX_LENGTH
from ..formats.counts import Counts
from ..host.extras import require
from ..latency.bench import ServedModels
from ..modules.compressed_linear import CompressedLinear
from .loyalty import label_loyalty, probability_loyalty
from .robustness import read_attacked, robustness

BATCH = 64


def evaluate(
    folder: str,
    teacher: str,
    data: Path,
    task_name: str,
    *,
    dev_file: str | None = None,
    sizes: Mapping[str, tuple[int, int]],
    rounds: int = 15,
    threads: int | None = None,
) -> dict[str, Any]:
    """Evaluation of the student in `folder` beside its teacher, as JSON.

    data: data folder as for `read_split`. sizes: label -> (batch, length) to time.

    The result has a row for the teacher, one for the student as loaded, and one for each dtype in
    which `optimize` can serve it: size and FLOPs of the encoder's linears (`Counts`), bytes of the
    whole model, the task's scores, loyalty to the teacher, and robustness. All are timed beside the
    teacher in one run. missing: "robustness" -> the reason, where the task has attacked texts but
    the data folder does not.

    Raises, before any computation, ValueError or OSError on models or data that do not fit, and
    ImportError on packages that are not installed.
    """
    require("lada eval", "train", "scipy", "sklearn")
    task = find_task(task_name)
    examples = read_split(data, task, "dev", dev_file)
    attacked, missing = None, {}
    try:
        attacked = read_attacked(data, task)
    except FileNotFoundError as error:
        missing["robustness"] = str(error)
    dense, student = load_model(teacher), load_model(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    check_vocabularies(AutoTokenizer.from_pretrained(teacher), tokenizer)
    for model in (dense, student):
        check_model(model, tokenizer, task)
    served = ServedModels.of_models(folder, dense, student)
    served.check_sizes(sizes)
    names = linear_names(dense, student)
    want = logits_of(dense, tokenizer, examples, task)
    rows = []
    for name, model in {"teacher": dense, **served.models}.items():
        got = want if model is dense else logits_of(model, tokenizer, examples, task)
        # count an optimized model before `optimize`: its packed weights are not stored in the file
        stored = served.references.get(name, model)
        row = {
            "name": name,
            "linears": asdict(linear_counts(stored, names)),
            "model_bytes": model_bytes(stored),
            "scores": scores(task, got, examples.labels),
        }
        if not task.regression:
            row["label_loyalty"] = label_loyalty(want, got)
            row["probability_loyalty"] = probability_loyalty(want, got)
        if attacked is not None:
            row["robustness"] = robustness(
                attacked,
                lambda texts, model=model: logits_of(model, tokenizer, texts, task),
            )
        rows.append(row)
    return {
        "task": task_name,
        "metric": task.metric,
        "examples": len(examples),
        "models": rows,
        "missing": missing,
        **served.shapes(sizes, rounds, threads),
    }


@torch.inference_mode()
def logits_of(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, examples: Examples, task: Task
) -> np.ndarray:
    """Logits (examples, labels) fp64, in the order of the examples."""
    inputs = tokenized(tokenizer, examples, min(MAX_LENGTH, longest(model)))
    order = sorted(range(len(inputs)), key=lambda i: len(inputs[i]["input_ids"]))
    logits = np.empty((len(inputs), task.num_labels))
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        batch = [{k: v for k, v in inputs[i].items() if k != "labels"} for i in chosen]
        padded = tokenizer.pad(batch, return_tensors="pt").to(model.device)
        logits[chosen] = model(**padded).logits.double().cpu().numpy()
    return logits


def linear_names(*models: nn.Module) -> list[str]:
    """Sorted names of the encoders' linears and of all linears that are compressed in any model."""
    return sorted(
        {
            name
            for model in models
            for name, module in model.named_modules()
            if isinstance(module, CompressedLinear)
            or (type(module) is nn.Linear and re.search(ENCODER_LINEARS, name))
        }
    )


def linear_counts(model: nn.Module, names: Iterable[str]) -> Counts:
    """Sum of the `Counts` of the model's linears of these names.

    Names that it lacks are skipped: a student may have fewer layers.
    """
    modules, total = dict(model.named_modules()), Counts()
    for module in (modules[name] for name in names if name in modules):
        if isinstance(module, CompressedLinear):
            total += module.counts()
            continue
        for parameter, flops in ((module.weight, 2), (module.bias, 1)):
            total += Counts() if parameter is None else Counts.of(parameter, flops)  # type: ignore[arg-type]
    return total


def check_vocabularies(teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase) -> None:
    """Raise ValueError unless both tokenizers have the same tokens with the same ids."""
    if teacher.get_vocab() != student.get_vocab():
        raise ValueError(
            f"the tokenizers differ: the teacher's has {len(teacher)} tokens, the student's "
            f"{len(student)}, or others; expected a student of this teacher"
        )
