"""A tiny BERT with a tokenizer, in a folder as users have them; random, so for plumbing only."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertModel, BertTokenizer

WORDS = list("abcdefghijklmnop.,123") + ["the", "dog", "cat", "house", "sleeps", "under", "old"]


def tiny_config(**changes: Any) -> BertConfig:
    sizes: dict[str, Any] = {
        "vocab_size": 5 + len(WORDS),
        "hidden_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 512,
        "max_position_embeddings": 128,
    }
    return BertConfig(**(sizes | changes))


def write_tiny_model(folder: Path) -> Path:
    torch.manual_seed(0)
    BertModel(tiny_config()).eval().save_pretrained(folder)
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    BertTokenizer(str(vocabulary)).save_pretrained(folder)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"pooling_mode_mean_tokens": True})
    )
    return folder
