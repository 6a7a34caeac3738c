"""Tiny classifiers and data for them: words whose meaning is easily learnt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BertForSequenceClassification, TrainingArguments

from tests.tiny_model import tiny_config

GOOD = 20  # the token that makes a text of label 1


def tiny_classifier(**changes: Any) -> BertForSequenceClassification:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2}
    return BertForSequenceClassification(tiny_config(**(sizes | changes))).eval()


def examples(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Texts of 4 to 12 random tokens; label 1 if they hold the token GOOD, else 0."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for i in range(count):
        length = int(torch.randint(4, 13, (), generator=generator))
        ids = torch.randint(5, GOOD, (length,), generator=generator)
        if i % 2:
            ids[int(torch.randint(0, length, (), generator=generator))] = GOOD
        found.append({"input_ids": ids.tolist(), "labels": i % 2})
    return found


def collate(items: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    longest = max(len(item["input_ids"]) for item in items)
    ids = torch.zeros(len(items), longest, dtype=torch.long)
    for row, item in zip(ids, items, strict=True):
        row[: len(item["input_ids"])] = torch.tensor(item["input_ids"])
    batch = {"input_ids": ids, "attention_mask": (ids > 0).long()}
    if "labels" in items[0]:
        batch["labels"] = torch.tensor([item["labels"] for item in items])
    return batch


def arguments(folder: Path, **changes: Any) -> TrainingArguments:
    settings: dict[str, Any] = {
        "use_cpu": True,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-3,
        "save_strategy": "no",
        "logging_steps": 4,
        "report_to": [],
        "disable_tqdm": True,
        "remove_unused_columns": False,
    }
    return TrainingArguments(str(folder), **(settings | changes))
