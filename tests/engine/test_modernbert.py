"""ModernBERT: pre-norm, with RoPE, sliding windows and gated feed-forwards."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from transformers import ModernBertConfig

from lada_ops import optimize, paths
from lada_ops.engine.gpu import fused as fused_module
from tests.engine.inputs import MASKS, assert_equal_where_visible, ids
from tests.engine.models import compress, dense, fused
from tests.tiny_encoders import ARCHITECTURES


@pytest.fixture
def before():
    """A compressed model whose every other layer has a sliding window of three tokens each way."""
    config, head = ARCHITECTURES["modernbert"]
    changes = {"local_attention": 6, "layer_types": ["full_attention", "sliding_attention"] * 2}
    sizes = config.to_diff_dict() | changes | {"num_hidden_layers": 4}
    torch.manual_seed(0)
    model = head(ModernBertConfig(**sizes)).eval()
    for parameter in model.model.layers.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.3)
    return compress(model).model


@pytest.fixture(params=[optimize, fused])
def pair(request, before):
    """The model, and a copy with an engine."""
    return before, request.param(copy.deepcopy(before))


@torch.no_grad()
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_masks(pair, mask):
    want, got = (model(ids(), mask)[0] for model in pair)
    assert_equal_where_visible(got, want, mask)


@torch.no_grad()
@pytest.mark.parametrize(("rows", "length"), [(1, 1), (2, 33), (1, 40), (5, 38)])
def test_lengths(pair, rows, length):
    want, got = (model(ids(rows, length))[0] for model in pair)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_longer_than_the_config_says(pair):
    want, got = (model(ids(2, 70))[0] for model in pair)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_row_that_is_all_padding(pair):
    mask = MASKS["right"].clone()
    mask[1] = 0
    want, got = (model(ids(), mask)[0] for model in pair)
    assert got.isfinite().all()
    assert_equal_where_visible(got, want, mask)


@torch.no_grad()
def test_windows_and_rope_change_the_outputs(before):
    """Windows and RoPE matter, so that the comparisons with transformers test them."""
    want = before(ids())[0]
    wide = copy.deepcopy(before)
    wide.config.local_attention = 40
    assert (wide(ids())[0] - want).abs().max() > 0.1
    for name in ("full_attention", "sliding_attention"):
        getattr(before.rotary_emb, f"{name}_inv_freq").zero_()
    assert (before(ids())[0] - want).abs().max() > 0.1


@torch.no_grad()
@pytest.mark.parametrize(
    "arguments",
    [
        {"position_ids": torch.arange(9)[None] * 2},
        {"output_hidden_states": True},
        {"attention_mask": MASKS["right"], "output_attentions": True},
        {"attention_mask": torch.ones(3, 1, 9, 9).tril().bool()},
        {"return_dict": False},
    ],
    ids=["positions", "hidden states", "attentions", "causal", "a tuple"],
)
def test_unsupported_calls_run_the_models_own_forward(pair, arguments):
    for model in pair:
        model.set_attn_implementation("eager")
    want, got = (model(ids(), **arguments) for model in pair)
    close: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(got[0], want[0], **close)
    for name in ("hidden_states", "attentions"):
        after, before = (getattr(output, name, None) or () for output in (got, want))
        torch.testing.assert_close(after, before, **close)


@torch.no_grad()
@pytest.mark.parametrize(("mask", "packed"), [("right", True), ("left", True), ("holes", False)])
def test_padding_is_packed_away_unless_windows_have_gaps(before, mask, packed, monkeypatch):
    calls = []
    real = fused_module.VarlenAttention
    monkeypatch.setattr(fused_module, "VarlenAttention", lambda *a: calls.append(a) or real(*a))
    fused(before)(ids(), MASKS[mask])
    assert bool(calls) is packed


def test_paths_of_its_linears():
    model = optimize(compress(dense("modernbert")))
    found = paths(model)
    assert len(found) == 8
    assert all(how.startswith("native encoder, float32: ") for how in found.values())


def test_layers_of_a_type_share_rotary_cos_and_sin():
    model = optimize(compress(dense("modernbert"))).model
    layers = model.forward.encoder.engine.encoder.layers
    assert [len(layer.cos_sin) for layer in layers] == [40, 40]
    assert [layer.window for layer in layers] == [None, 64]


@torch.no_grad()
@pytest.mark.parametrize("arguments", [{}, {"attention_mask": MASKS["right"]}])
def test_compiles_to_one_graph(before, arguments):
    model = fused(copy.deepcopy(before))
    torch._dynamo.reset()  # all models share code, which is recompiled only so often
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    want = before(ids(), **arguments)[0]
    assert_equal_where_visible(
        compiled(ids(), **arguments)[0], want, arguments.get("attention_mask")
    )
