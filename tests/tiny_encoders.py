"""Tiny random models of every architecture, as transformers builds them."""

from typing import Any

import torch
import transformers as hf
from transformers import PreTrainedModel

VOCABULARY = 60
_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
}
_RELATIVE: dict[str, Any] = {
    "relative_attention": True,
    "pos_att_type": ["c2p", "p2c"],
    "max_relative_positions": 16,
}

ARCHITECTURES: dict[str, Any] = {  # name -> config and a model with a head
    "bert": (hf.BertConfig(**_SIZES), hf.BertForSequenceClassification),
    "roberta": (hf.RobertaConfig(**_SIZES), hf.RobertaForMaskedLM),
    "electra": (hf.ElectraConfig(**_SIZES, embedding_size=16), hf.ElectraForPreTraining),
    "distilbert": (
        hf.DistilBertConfig(
            dim=32, n_layers=2, n_heads=2, hidden_dim=64, vocab_size=60, max_position_embeddings=40
        ),
        hf.DistilBertForSequenceClassification,
    ),
    "mpnet": (hf.MPNetConfig(**_SIZES), hf.MPNetForMaskedLM),
    "modernbert": (
        hf.ModernBertConfig(
            **_SIZES, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2
        ),
        hf.ModernBertForSequenceClassification,
    ),
    "albert": (hf.AlbertConfig(**_SIZES, embedding_size=16), hf.AlbertForMaskedLM),
    "deberta": (hf.DebertaConfig(**_SIZES, **_RELATIVE), hf.DebertaForSequenceClassification),
    "deberta-v2": (hf.DebertaV2Config(**_SIZES, **_RELATIVE), hf.DebertaV2ForMaskedLM),
}


def with_head(name: str = "bert") -> Any:
    """A model of that architecture with a head, in eval mode; the same weights every time."""
    config, head = ARCHITECTURES[name]
    torch.manual_seed(0)
    return head(type(config)(**config.to_diff_dict())).eval()


def tiny_bert(**changes: Any) -> Any:
    """A BertModel without a head."""
    torch.manual_seed(0)
    return hf.BertModel(hf.BertConfig(**(_SIZES | changes))).eval()


def batch(rows: int = 3, length: int = 9, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random tokens as a tokenizer returns them; row i has i tokens of padding."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, VOCABULARY, (rows, length), generator=generator)
    mask = (torch.arange(length) < length - torch.arange(rows)[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


@torch.no_grad()
def outputs(model: PreTrainedModel) -> torch.Tensor:
    """Logits or last hidden state of the model for `batch()`."""
    return model(**batch())[0]
