"""Fused layers, on the CPU: what they say there is what they say on a GPU."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from lada_ops import LowRankLinear, optimize, paths, restore
from lada_ops.compression.plan import METHODS
from tests.engine.inputs import MASKS, MORE_THAN_PADDING, assert_equal_where_seen, ids
from tests.engine.models import KNOWN, compress, compressed, dense, fused, seen
from tests.tiny_encoders import batch, outputs, tiny_bert

CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-6}


@pytest.fixture
def bert():
    return compress(tiny_bert())


@pytest.mark.parametrize("method", [None, *METHODS])
@pytest.mark.parametrize("name", KNOWN)
def test_model_says_what_it_said(name, method):
    model = dense(name) if method is None else compressed(name, method)
    want = seen(outputs(model))
    torch.testing.assert_close(seen(outputs(fused(model))), want, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_masks(mask, attention):
    model = compress(tiny_bert(attn_implementation=attention))
    want = model(ids(), mask)[0]
    assert_equal_where_seen(fused(model)(ids(), mask)[0], want, mask)


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
@pytest.mark.parametrize("asked", [{}, {"output_hidden_states": True}], ids=["plain", "by layer"])
def test_a_row_that_is_all_padding(bert, asked):
    mask = MASKS["right"].clone()
    mask[1] = 0
    want = bert(ids(), mask)[0]
    got = fused(bert)(ids(), mask, **asked)[0]
    assert got.isfinite().all()
    assert_equal_where_seen(got, want, mask)


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
@pytest.mark.parametrize("what", ["hidden_states", "attentions"])
@pytest.mark.parametrize("name", KNOWN)
def test_what_is_asked_for_is_given(name, what):
    model = compressed(name)
    model.set_attn_implementation("eager")
    asked: dict[str, Any] = {f"output_{what}": True}
    want = model(**batch(), **asked)[what]
    got = fused(model)(**batch(), **asked)[what]
    assert len(got) == len(want) > 0
    for after, before in zip(got, want, strict=True):
        torch.testing.assert_close(seen(after), seen(before), **CLOSE)


@torch.no_grad()
def test_hooks_inside_are_called(bert):
    met = []
    want = outputs(bert)
    fused(bert).encoder.layer[1].output.dense.register_forward_hook(
        lambda module, given, y: met.append(y.shape)
    )
    torch.testing.assert_close(seen(outputs(bert)), seen(want), **CLOSE)
    assert met == [(3, 9, 32)]


@torch.no_grad()
@pytest.mark.parametrize("changed", ["q", "ranks"])
def test_a_mixed_layer(changed):
    model = compress(tiny_bert(), layers="(key|value|output.dense)$")
    if changed == "ranks":
        attention = model.encoder.layer[0].attention.self
        attention.query = LowRankLinear.from_linear(attention.query, 3)
    want = seen(outputs(model))
    torch.testing.assert_close(seen(outputs(fused(model))), want, **CLOSE)


@torch.no_grad()
def test_another_thread_gets_its_own_answers(bert):
    from concurrent.futures import ThreadPoolExecutor

    inputs = [batch(seed=seed) for seed in range(16)]
    want = [bert(**one)[0] for one in inputs]
    fused(bert)

    @torch.no_grad()
    def answer(one):
        return bert(**one)[0]

    with ThreadPoolExecutor(4) as pool:
        for got, before in zip(pool.map(answer, inputs), want, strict=True):
            torch.testing.assert_close(seen(got), seen(before), **CLOSE)


class TestState:
    def test_state_dict_is_as_before(self, bert):
        before = {name: t.clone() for name, t in bert.state_dict().items()}
        torch.testing.assert_close(dict(fused(bert).state_dict()), before, rtol=0, atol=0)

    def test_saved_and_loaded_it_is_the_compressed_model(self, bert, tmp_path):
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

    def test_what_is_not_fused_can_be_loaded(self, bert):
        embeddings = fused(bert).embeddings
        other = {name: t + 1 for name, t in embeddings.state_dict().items()}
        embeddings.load_state_dict(other)
        torch.testing.assert_close(dict(embeddings.state_dict()), other, rtol=0, atol=0)

    def test_training_is_refused(self, bert):
        with pytest.raises(RuntimeError, match="in training mode"):
            fused(bert).train()(ids())

    def test_a_copy_says_the_same(self, bert):
        want = outputs(fused(bert))
        other = copy.deepcopy(bert)
        del bert
        torch.testing.assert_close(outputs(other), want, rtol=0, atol=0)

    def test_it_follows_another_dtype(self, bert):
        want = seen(outputs(bert))
        got = seen(outputs(fused(bert).double()))
        assert got.dtype == torch.float64
        torch.testing.assert_close(got.float(), want, **CLOSE)

    def test_it_gives_gradients_to_its_inputs(self, bert):
        x = torch.randn(2, 5, 32, requires_grad=True)
        (want,) = torch.autograd.grad(bert(inputs_embeds=x)[0].square().sum(), x)
        (got,) = torch.autograd.grad(fused(bert)(inputs_embeds=x)[0].square().sum(), x)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


class TestRestore:
    @pytest.mark.parametrize("method", [None, *METHODS])
    def test_is_what_was_before(self, method):
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

    def test_weights_are_their_own_again(self, bert):
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


def test_a_second_time_changes_nothing(bert):
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
@pytest.mark.parametrize("name", ["bert", "electra", "distilbert", "mpnet"])
def test_compiled_it_is_one_graph(name, arguments):
    model = fused(compressed(name)).base_model
    inputs = {"input_ids": ids()} | arguments
    want = model(**inputs)[0]
    torch._dynamo.reset()  # every model's is the same code, compiled so often and no more
    compiled: Any = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_equal_where_seen(compiled(**inputs)[0], want, arguments.get("attention_mask"))
