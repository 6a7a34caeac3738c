"""Tiny models of every architecture, dense and compressed, and the visible part of outputs."""

from typing import Any

import torch
import transformers as hf

import lada_ops
from lada_ops.compression.plan import Method
from lada_ops.engine.find import SupportedEncoder, find_encoders
from lada_ops.engine.optimize import fuse
from tests.tiny_encoders import ARCHITECTURES, batch, with_head

KNOWN = ["bert", "tokens", "roberta", "xlm-roberta", "camembert", "electra", "distilbert", "mpnet"]
KNOWN += ["modernbert"]
UNKNOWN = ["albert", "deberta", "deberta-v2"]
_LIKE: dict[str, Any] = {  # name -> whose config, and the classes
    "tokens": ("bert", hf.BertConfig, hf.BertForTokenClassification),
    "xlm-roberta": ("roberta", hf.XLMRobertaConfig, hf.XLMRobertaForMaskedLM),
    "camembert": ("roberta", hf.CamembertConfig, hf.CamembertForMaskedLM),
}


def dense(name: str) -> Any:
    """A model of that architecture with a head, in eval mode; the same weights every time."""
    if name not in _LIKE:
        return with_head(name)
    like, config, head = _LIKE[name]
    sizes = ARCHITECTURES[like][0].to_diff_dict()
    torch.manual_seed(0)
    return head(config(**{k: v for k, v in sizes.items() if k != "model_type"})).eval()


def compress(model: Any, method: Method = "low_rank", layers: str | None = None) -> Any:
    plan = lada_ops.plan(model, 2, method, block=(16, 16), rank_multiple=2, layers=layers)
    lada_ops.compress(model, plan=plan, quiet=True)
    return model


def compressed(name: str, method: Method = "low_rank") -> Any:
    return compress(dense(name), method)


def fused(model: Any) -> Any:
    """`model` as `optimize` returns it on a GPU, on any device."""
    encoders = [e for e in find_encoders(model).values() if isinstance(e, SupportedEncoder)]
    assert encoders
    fuse(model, encoders, torch.float32)
    return model


def visible(output: torch.Tensor) -> torch.Tensor:
    """Outputs at the tokens of `batch()` that are no padding."""
    mask = batch()["attention_mask"].bool()
    return output[mask] if output.shape[:2] == mask.shape else output
