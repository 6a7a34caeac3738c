"""Sentence embeddings of a model beside those of the dense one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..architectures.encoders import encoder_linears
from ..compression.pretrained import compression_of
from ..data.glue import SentencePairs
from ..data.texts import MAX_LENGTH

BUCKETS = ((1, 16), (1, 128), (8, 128), (32, 128))  # batch x length


@torch.inference_mode()
def embed(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sentences: Sequence[str]
) -> Tensor:
    """Sentence embeddings (sentences, hidden): means over unmasked tokens, normalised."""
    rows: dict[str, Tensor] = {}
    for texts in _by_length(sentences, 64):
        inputs = tokenizer(
            texts, padding=True, truncation=True, max_length=MAX_LENGTH, return_tensors="pt"
        ).to(model.device)
        weights = inputs["attention_mask"][..., None]
        mean = (model(**inputs).last_hidden_state * weights).sum(1) / weights.sum(1)
        rows |= zip(texts, F.normalize(mean, dim=1), strict=True)
    return torch.stack([rows[sentence] for sentence in sentences])


def _by_length(sentences: Sequence[str], size: int) -> Iterable[list[str]]:
    unique = sorted(set(sentences), key=len)
    return (unique[start : start + size] for start in range(0, len(unique), size))


def quality(
    name: str,
    model: PreTrainedModel,
    got: Tensor,
    want: Tensor,
    pairs: SentencePairs | None,
) -> dict[str, Any]:
    """Row of a table: costs of a model, and the agreement of its embeddings with the dense ones.

    got, want (sentences, hidden): embeddings of the same texts by the model and by the dense one;
    where `pairs` are given, of their first sentences and then of their second ones.
    """
    cosine = (got * want).sum(1)
    recorded = compression_of(model)
    linears = {} if recorded else encoder_linears(model)
    dense_bytes = sum(
        p.numel() * p.element_size() for m in linears.values() for p in m.parameters()
    )
    return {
        "name": name,
        "linears_bytes": recorded[1].compressed.stored_bytes if recorded else dense_bytes,
        "linears_ratio": recorded[1].ratio if recorded else 1.0,
        "model_bytes": sum(p.numel() * p.element_size() for p in model.parameters()),
        "cosine_mean": float(cosine.mean()),
        "cosine_min": float(cosine.min()),
        "spearman": None if pairs is None else _spearman(got, pairs),
    }


def _spearman(embeddings: Tensor, pairs: SentencePairs) -> float:
    """Rank correlation of cosines with scores; embeddings hold all first, then all second."""
    from scipy.stats import spearmanr

    first, second = embeddings.cpu().split(len(pairs.scores))
    return float(spearmanr((first * second).sum(1), pairs.scores)[0])  # type: ignore[arg-type]


def full_batches(
    tokenizer: PreTrainedTokenizerBase, sentences: Sequence[str], device: torch.device
) -> dict[str, Mapping[str, Tensor]]:
    """Inputs without padding, by batch x length: tokens of the sentences one after another."""
    ids = tokenizer(" ".join(sentences), add_special_tokens=False)["input_ids"]
    batches: dict[str, Mapping[str, Tensor]] = {}
    for batch, length in BUCKETS:
        count = batch * length
        tokens = torch.tensor(ids * (1 + count // len(ids)), dtype=torch.long, device=device)
        input_ids = tokens[:count].view(batch, length)
        mask = torch.ones_like(input_ids)
        batches[f"{batch}x{length}"] = {"input_ids": input_ids, "attention_mask": mask}
    return batches
