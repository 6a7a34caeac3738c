"""Fused layers, run on the CPU, where they compute the same as on a GPU."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from lada_ops import LowRankLinear, optimize, paths, restore
from lada_ops.compression.plan import METHODS
from tests.engine.inputs import MASKS, MORE_THAN_PADDING, assert_equal_where_visible, ids
from tests.engine.models import KNOWN, compress, compressed, dense, fused, visible
from tests.tiny_encoders import batch, outputs, tiny_bert

CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-6}


@pytest.fixture
def bert():
    return compress(tiny_bert())


@pytest.mark.parametrize("method", [None, *METHODS])
@pytest.mark.parametrize("name", KNOWN)
def test_outputs_are_unchanged(name, method):
    model = dense(name) if method is None else compressed(name, method)
    want = visible(outputs(model))
    torch.testing.assert_close(visible(outputs(fused(model))), want, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_masks(mask, attention):
    model = compress(tiny_bert(attn_implementation=attention))
    want = model(ids(), mask)[0]
    assert_equal_where_visible(fused(model)(ids(), mask)[0], want, mask)


@torch.no_grad()
@pytest.mark.parametrize("mask", MORE_THAN_PADDING.values(), ids=MORE_THAN_PADDING)
def test_masks_that_are_more_than_padding(bert, mask):
    want = bert(ids(), mask)[0]
    torch.testing.assert_close(fused(bert)(ids(), mask)[0], want, **CLOSE)


@torch.no_grad()
def test_padding_is_left_out(bert):
    y = fused(bert)(ids(), MASKS["right"])[0]
    assert not y[~MASKS["right"].bool()].any()


@torch.no_grad()
@pytest.mark.parametrize(
    "arguments", [{}, {"output_hidden_states": True}], ids=["plain", "by layer"]
)
def test_a_row_that_is_all_padding(bert, arguments):
    mask = MASKS["right"].clone()
    mask[1] = 0
    want = bert(ids(), mask)[0]
    got = fused(bert)(ids(), mask, **arguments)[0]
    assert got.isfinite().all()
    assert_equal_where_visible(got, want, mask)


@torch.no_grad()
def test_all_is_padding(bert):
    assert not fused(bert)(ids(), torch.zeros(3, 9))[0].any()


@torch.no_grad()
@pytest.mark.parametrize("mask", [None, MASKS["right"]], ids=["none", "right"])
def test_under_autocast(bert, mask):
    with torch.autocast("cpu", torch.bfloat16):
        want = bert(ids(), mask)[0]
        got = fused(bert)(ids(), mask)[0]
    kept = torch.ones(3, 9).bool() if mask is None else mask.bool()
    torch.testing.assert_close(got[kept].float(), want[kept].float(), rtol=5e-2, atol=5e-2)


@torch.no_grad()
@pytest.mark.parametrize("requested", ["hidden_states", "attentions"])
@pytest.mark.parametrize("name", KNOWN)
def test_requested_outputs_are_returned(name, requested):
    model = compressed(name)
    model.set_attn_implementation("eager")
    arguments: dict[str, Any] = {f"output_{requested}": True}
    want = model(**batch(), **arguments)[requested]
    got = fused(model)(**batch(), **arguments)[requested]
    assert len(got) == len(want) > 0
    for after, before in zip(got, want, strict=True):
        torch.testing.assert_close(visible(after), visible(before), **CLOSE)


@torch.no_grad()
def test_hooks_inside_are_called(bert):
    met = []
    want = outputs(bert)
    fused(bert).encoder.layer[1].output.dense.register_forward_hook(
        lambda module, given, y: met.append(y.shape)
    )
    torch.testing.assert_close(visible(outputs(bert)), visible(want), **CLOSE)
    assert met == [(3, 9, 32)]


@torch.no_grad()
@pytest.mark.parametrize("changed", ["q", "ranks"])
def test_a_layer_of_mixed_formats(changed):
    model = compress(tiny_bert(), layers="(key|value|output.dense)$")
    if changed == "ranks":
        attention = model.encoder.layer[0].attention.self
        attention.query = LowRankLinear.from_linear(attention.query, 3)
    want = visible(outputs(model))
    torch.testing.assert_close(visible(outputs(fused(model))), want, **CLOSE)


@torch.no_grad()
def test_threads_get_their_own_outputs(bert):
    from concurrent.futures import ThreadPoolExecutor

    inputs = [batch(seed=seed) for seed in range(16)]
    want = [bert(**one)[0] for one in inputs]
    fused(bert)

    @torch.no_grad()
    def forward(one):
        return bert(**one)[0]

    with ThreadPoolExecutor(4) as pool:
        for got, before in zip(pool.map(forward, inputs), want, strict=True):
            torch.testing.assert_close(visible(got), visible(before), **CLOSE)


class TestState:
    def test_state_dict_is_as_before(self, bert):
        before = {name: t.clone() for name, t in bert.state_dict().items()}
        torch.testing.assert_close(dict(fused(bert).state_dict()), before, rtol=0, atol=0)

    def test_a_saved_model_loads_as_the_compressed_model(self, bert, tmp_path):
        from transformers import AutoModel

        want = outputs(bert)
        fused(bert).save_pretrained(tmp_path)
        loaded = AutoModel.from_pretrained(tmp_path).eval()
        torch.testing.assert_close(outputs(loaded), want, rtol=0, atol=0)

    @pytest.mark.parametrize("name", ["", "encoder", "encoder.layer.0.attention.self.query"])
    def test_loading_is_refused_before_anything_changed(self, bert, name):
        before = {name: t.clone() for name, t in fused(bert).state_dict().items()}
        part = bert.get_submodule(name)
        other = {name: t + 1 for name, t in part.state_dict().items()}
        with pytest.raises(RuntimeError, match="optimized for inference; load its weights first"):
            part.load_state_dict(other)
        torch.testing.assert_close(dict(bert.state_dict()), before, rtol=0, atol=0)

    def test_other_modules_can_be_loaded(self, bert):
        embeddings = fused(bert).embeddings
        other = {name: t + 1 for name, t in embeddings.state_dict().items()}
        embeddings.load_state_dict(other)
        torch.testing.assert_close(dict(embeddings.state_dict()), other, rtol=0, atol=0)

    def test_training_is_refused(self, bert):
        with pytest.raises(RuntimeError, match="in training mode"):
            fused(bert).train()(ids())

    def test_a_copy_computes_the_same(self, bert):
        want = outputs(fused(bert))
        other = copy.deepcopy(bert)
        del bert
        torch.testing.assert_close(outputs(other), want, rtol=0, atol=0)

    def test_conversion_to_another_dtype(self, bert):
        want = visible(outputs(bert))
        got = visible(outputs(fused(bert).double()))
        assert got.dtype == torch.float64
        torch.testing.assert_close(got.float(), want, **CLOSE)

    def test_gradients_of_inputs(self, bert):
        x = torch.randn(2, 5, 32, requires_grad=True)
        (want,) = torch.autograd.grad(bert(inputs_embeds=x)[0].square().sum(), x)
        (got,) = torch.autograd.grad(fused(bert)(inputs_embeds=x)[0].square().sum(), x)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


class TestRestore:
    @pytest.mark.parametrize("method", [None, *METHODS])
    def test_gives_back_the_model_before(self, method):
        model = dense("bert") if method is None else compressed("bert", method)
        before = outputs(model)
        types = {name: type(module) for name, module in model.named_modules()}
        flags = {name: p.requires_grad for name, p in model.named_parameters()}
        fused(model.train())
        assert set(restore(model)) <= types.keys()
        assert {name: type(module) for name, module in model.named_modules()} == types
        assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
        assert all(module.training for module in model.modules())
        torch.testing.assert_close(outputs(model.eval()), before, rtol=0, atol=0)

    def test_weights_are_no_longer_views(self, bert):
        restore(fused(bert))
        for parameter in bert.parameters():
            assert parameter.untyped_storage().nbytes() == parameter.nbytes

    def test_weights_can_be_loaded_again(self, bert):
        restore(fused(bert))
        other = {name: t + 1 for name, t in bert.state_dict().items()}
        bert.load_state_dict(other)
        torch.testing.assert_close(dict(bert.state_dict()), other)

    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
    def test_of_a_copy(self, bert, copied):
        want = outputs(bert)
        other = copied(fused(bert))
        restore(other)
        torch.testing.assert_close(outputs(other), want, rtol=0, atol=0)
        other.load_state_dict(other.state_dict())
        with pytest.raises(RuntimeError, match="optimized for inference"):
            bert.load_state_dict(bert.state_dict())

    def test_a_part_is_refused(self, bert):
        fused(bert)
        with pytest.raises(ValueError, match="layer.0 was optimized with a larger model"):
            restore(bert.encoder)


def test_optimize_changes_nothing_in_an_optimized_model(bert):
    before = [id(module) for module in fused(bert).modules()]
    assert optimize(bert) is bert
    assert [id(module) for module in bert.modules()] == before


def test_paths(bert):
    bert.encoder.layer[0].output.dense = nn.Linear(64, 32)
    found = paths(fused(bert))
    assert found["encoder.layer.0.attention.self.key"] == (
        "fused layer, float32: low rank, 3 in one product"
    )
    assert found["encoder.layer.0.intermediate.dense"] == "fused layer, float32: low rank"
    assert found["encoder.layer.0.output.dense"] == "fused layer, float32: dense"
    assert found["encoder.layer.1.output.dense"] == (
        "fused layer, float32: low rank, the feed-forward in one op"
    )


@torch.no_grad()
@pytest.mark.parametrize("arguments", [{}, batch()], ids=["no mask", "a mask"])
@pytest.mark.parametrize(
    "name",
    [
        "bert",
        *(
            pytest.param(n, marks=pytest.mark.exhaustive)
            for n in ("electra", "distilbert", "mpnet")
        ),
    ],
)
def test_compiles_to_one_graph(name, arguments):
    model = fused(compressed(name)).base_model
    inputs = {"input_ids": ids()} | arguments
    want = model(**inputs)[0]
    torch._dynamo.reset()  # all models share code, which is recompiled only so often
    compiled: Any = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_equal_where_visible(compiled(**inputs)[0], want, arguments.get("attention_mask"))
