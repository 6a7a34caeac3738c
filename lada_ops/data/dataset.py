"""Tokenized examples of a task, and the check that a model fits the task."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .glue import Examples, Task
from .texts import MAX_LENGTH


def tokenized(
    tokenizer: PreTrainedTokenizerBase, examples: Examples, max_length: int = MAX_LENGTH
) -> list[dict[str, Any]]:
    """Model inputs and `labels` of each example, not padded, as Trainer takes them."""
    first, *second = (list(column) for column in zip(*examples.texts, strict=True))
    pairs = second[0] if second else None
    encoded = tokenizer(first, pairs, truncation=True, max_length=max_length)
    return [
        {name: encoded[name][i] for name in encoded} | {"labels": label}
        for i, label in enumerate(examples.labels)
    ]


def check_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task) -> None:
    """Raise ValueError unless model and tokenizer fit the task: head, labels, vocabulary."""
    config: Any = model.config
    if "SequenceClassification" not in type(model).__name__:
        raise ValueError(
            f"{type(model).__name__} has no head for {task.name}; expected a model for sequence "
            "classification that was trained on it"
        )
    if config.num_labels != task.num_labels:
        raise ValueError(
            f"the model has {config.num_labels} labels; expected {task.num_labels} for {task.name}"
            f"{f': {task.labels}' if task.labels else ', a score'}"
        )
    problem = "regression" if task.regression else "single_label_classification"
    if config.problem_type not in (None, problem):  # None: training derives it from the labels
        raise ValueError(
            f"the model's problem_type is {config.problem_type!r}; expected {problem!r} for "
            f"{task.name}"
        )
    for number, label in enumerate(task.labels):
        got = str(config.id2label.get(number, "")).lower()
        others = {other.lower() for other in task.labels} - {label}
        if got in others:
            raise ValueError(
                f"the model calls label {number} {config.id2label[number]!r}; expected {label!r}, "
                f"as {task.name} has it"
            )
    vocabulary = config.get_text_config().vocab_size
    if len(tokenizer) > vocabulary:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens, the model embeds {vocabulary}; expected "
            "the model's own tokenizer"
        )
