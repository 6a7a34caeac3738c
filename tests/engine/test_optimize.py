import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModel

import lada_ops
from lada_kernels.cpu import native
from lada_ops import LowRankLinear, optimize
from lada_ops.engine.optimize import paths
from lada_ops.modules.packed_linear import PackedLinear
from lada_ops.plans import METHODS, Method
from tests.tiny_encoders import batch, outputs, tiny_bert, with_head

KNOWN = ["bert", "roberta", "electra", "distilbert"]
UNKNOWN = ["mpnet", "modernbert", "albert", "deberta", "deberta-v2"]
COSINE = {torch.float32: 1 - 1e-6, torch.bfloat16: 0.999, torch.int8: 0.98}


def compress(model, method: Method = "low_rank"):
    lada_ops.compress(
        model, lada_ops.plan(model, 2, method, block=(16, 16), rank_multiple=2), quiet=True
    )
    return model


def compressed(name, method: Method = "low_rank"):
    return compress(with_head(name), method)


def seen(output):
    """What is said of tokens, of those that are no padding."""
    mask = batch()["attention_mask"].bool()
    return output[mask] if output.shape[:2] == mask.shape else output


@pytest.fixture
def bert():
    return compress(tiny_bert())


@pytest.mark.parametrize("method", [None, *METHODS])
@pytest.mark.parametrize("name", KNOWN)
def test_model_says_what_it_said(name, method):
    model = with_head(name) if method is None else compressed(name, method)
    want = seen(outputs(model))
    torch.testing.assert_close(seen(outputs(optimize(model))), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", UNKNOWN)
def test_linears_of_other_encoders_run_one_by_one(name):
    model = compressed(name)
    want = outputs(model)
    optimize(model)
    torch.testing.assert_close(outputs(model), want, rtol=1e-4, atol=1e-5)
    assert all("native linear" in path for path in paths(model).values())


@pytest.mark.parametrize("dtype", COSINE, ids=str)
def test_dtypes(bert, dtype):
    want = seen(outputs(bert))
    got = seen(outputs(optimize(bert, dtype)))
    assert got.dtype == torch.float32
    assert F.cosine_similarity(got, want).min() > COSINE[dtype]


def test_returns_the_model_ready_to_serve(bert):
    assert optimize(bert.train()) is bert
    assert not any(module.training for module in bert.modules())
    assert not any(parameter.requires_grad for parameter in bert.parameters())


def test_memory_is_that_of_the_compressed_weights():
    model = tiny_bert(hidden_size=128, intermediate_size=512)
    lada_ops.compress(model, lada_ops.plan(model, 4, "low_rank"), quiet=True)
    stored = sum(m.counts().stored_bytes for m in model.modules() if isinstance(m, LowRankLinear))
    optimize(model)
    packed = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
        for m in model.modules()
        if isinstance(m, PackedLinear)
        for t in (m.packed.down.weights, m.packed.up.weights)
    }
    assert sum(packed.values()) < 1.35 * stored  # ranks are padded to multiples of 16


@pytest.mark.parametrize("method", METHODS)
def test_state_dict_is_as_before(method):
    model = compressed("bert", method)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    after = optimize(model).state_dict()
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize("method", METHODS)
def test_saved_and_loaded_it_is_the_compressed_model(method, tmp_path):
    model = compress(tiny_bert(), method)
    want = outputs(model)
    optimize(model).save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(outputs(loaded), want, rtol=0, atol=0)


def test_loading_weights_into_it_is_refused(bert):
    state = bert.state_dict()
    optimize(bert)
    with pytest.raises(RuntimeError, match=r"optimized for inference; load its weights first"):
        bert.load_state_dict(state)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_say_the_same(bert, copied):
    want = outputs(optimize(bert))
    other = copied(bert)
    del bert
    torch.testing.assert_close(outputs(other), want, rtol=0, atol=0)


def test_compiled_it_says_the_same(bert):
    want = outputs(optimize(bert))
    compiled: Any = torch.compile(bert, backend="aot_eager")
    torch.testing.assert_close(outputs(compiled), want)


def test_without_the_library_the_model_stays(bert, monkeypatch):
    want = outputs(bert)
    monkeypatch.setattr(native, "best", lambda: None)
    before = [id(module) for module in bert.modules()]
    optimize(bert)
    assert [id(module) for module in bert.modules()] == before
    torch.testing.assert_close(outputs(bert), want, rtol=0, atol=0)


class TestRefuses:
    @pytest.fixture(autouse=True)
    def _unchanged(self, bert):
        before = [id(module) for module in bert.modules()]
        yield
        assert [id(module) for module in bert.modules()] == before

    def test_another_dtype(self, bert):
        with pytest.raises(ValueError, match=r"optimize: dtype torch.float16; expected one of"):
            optimize(bert, torch.float16)

    def test_a_model_in_half_precision(self, bert):
        with pytest.raises(TypeError, match=r"is torch.float16 on cpu; expected .*float32"):
            optimize(bert.half())

    def test_a_model_elsewhere(self, bert):
        with pytest.raises(TypeError, match="on meta; expected"):
            optimize(copy.deepcopy(bert).to("meta"))

    def test_a_model_without_an_encoder(self):
        with pytest.raises(ValueError, match="nothing to optimize in Sequential"):
            optimize(nn.Sequential(nn.Linear(3, 4)))


def test_a_second_time_is_refused(bert):
    optimize(bert)
    with pytest.raises(ValueError, match=r"optimize: .* already"):
        optimize(bert)


class TestPaths:
    def test_before(self, bert):
        assert set(paths(bert).values()) == {"plain torch: not optimized"}

    def test_of_a_known_encoder(self, bert):
        found = paths(optimize(bert, torch.bfloat16))
        assert len(found) == 12
        assert set(found.values()) == {"native encoder, bfloat16"}

    def test_of_another_one(self):
        found = paths(optimize(compressed("mpnet")))
        assert set(found.values()) == {
            "native linear, float32; no native encoder: layers of MPNetLayer are not known; known "
            "are BertLayer, RobertaLayer, XLMRobertaLayer, CamembertLayer, ElectraLayer, "
            "TransformerBlock"
        }


def test_alone_standing_modules_are_packed_too():
    model = nn.Sequential(LowRankLinear(24, 40, 6, activation="gelu"), nn.Linear(40, 3))
    x = torch.randn(5, 24)
    with torch.no_grad():
        want = model(x)
    optimize(model)
    assert [type(module) for module in model] == [PackedLinear, nn.Linear]
    torch.testing.assert_close(model(x), want, rtol=1e-5, atol=1e-5)
