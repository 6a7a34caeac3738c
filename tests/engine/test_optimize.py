import copy
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lada_ops
from lada_kernels.cpu import native
from lada_ops import LowRankFFN, LowRankLinear, optimize, paths, restore
from lada_ops.compression.plan import METHODS
from lada_ops.engine.cpu import choice
from lada_ops.engine.optimize import fast_dtypes
from lada_ops.modules.packed_linear import PackedLinear
from tests.engine.models import KNOWN, UNKNOWN, compress, compressed, dense, visible
from tests.tiny_encoders import batch, outputs, tiny_bert

COSINE = {torch.float32: 1 - 1e-6, torch.bfloat16: 0.999, torch.int8: 0.98}


@pytest.fixture
def bert():
    return compress(tiny_bert())


@pytest.mark.parametrize("method", [None, *METHODS])
@pytest.mark.parametrize("name", KNOWN)
def test_outputs_are_unchanged(name, method):
    model = dense(name) if method is None else compressed(name, method)
    want = visible(outputs(model))
    torch.testing.assert_close(visible(outputs(optimize(model))), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", UNKNOWN)
def test_linears_of_unsupported_architectures_run_one_by_one(name):
    model = compressed(name)
    want = outputs(model)
    optimize(model)
    torch.testing.assert_close(outputs(model), want, rtol=1e-4, atol=1e-5)
    assert all("native linear" in path for path in paths(model).values())


@torch.no_grad()
@pytest.mark.parametrize("name", KNOWN)
def test_hidden_states_of_every_architecture(name):
    model = compressed(name)
    want = model(**batch(), output_hidden_states=True).hidden_states
    got = optimize(model)(**batch(), output_hidden_states=True).hidden_states
    for after, before in zip(got, want, strict=True):
        torch.testing.assert_close(visible(after), visible(before), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("heads", [1, 3, 4])
def test_any_heads(heads):
    model = tiny_bert(hidden_size=96, num_attention_heads=heads)
    want = visible(outputs(model))
    torch.testing.assert_close(visible(outputs(optimize(model))), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [{"hidden_act": "gelu_fast"}, {"hidden_size": 48}, {"is_decoder": True, "use_cache": False}],
    ids=str,
)
def test_linears_of_unsupported_encoders_run_one_by_one(changes):
    model = compress(tiny_bert(**changes), layers="intermediate")
    want = outputs(model)
    torch.testing.assert_close(outputs(optimize(model)), want, rtol=1e-4, atol=1e-5)
    layer = model.encoder.layer[0]
    assert type(layer.intermediate.dense) is PackedLinear
    assert type(layer.output.dense) is nn.Linear
    assert "not the whole encoder: " in paths(model)["encoder.layer.0.intermediate.dense"]


@pytest.mark.parametrize("dtype", COSINE, ids=str)
def test_dtypes(bert, dtype):
    want = visible(outputs(bert))
    got = visible(outputs(optimize(bert, dtype)))
    assert got.dtype == torch.float32
    assert F.cosine_similarity(got, want).min() > COSINE[dtype]


@pytest.mark.parametrize("method", [None, *METHODS])
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("dtype", [None, torch.float32, torch.int8], ids=str)
def test_models_in_half_precision(method, stored, dtype):
    model = (dense("bert") if method is None else compressed("bert", method)).to(stored)
    state = {name: t.clone() for name, t in model.state_dict().items()}
    want = outputs(copy.deepcopy(model).float())
    optimize(model, dtype)
    got = outputs(model)
    assert got.dtype == stored
    assert (got - want).abs().max() < (0.03 if dtype == torch.int8 else 0.01)
    restore(model)
    rounded = 0.02 if dtype == torch.int8 else 0
    torch.testing.assert_close(dict(model.state_dict()), state, rtol=0, atol=rounded)


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_models_in_bf16_compute_in_it_where_it_is_fast(bert, stored):
    optimize(bert.to(stored))
    fast = stored == torch.bfloat16 and stored in fast_dtypes()
    want = "bfloat16" if fast else "float32"
    assert set(paths(bert).values()) == {f"native encoder, {want}: compressed"}


def test_returns_the_model_ready_to_serve(bert):
    assert optimize(bert.train()) is bert
    assert not any(module.training for module in bert.modules())
    assert not any(parameter.requires_grad for parameter in bert.parameters())


def test_compiled_it_computes_the_same(bert):
    want = outputs(optimize(bert))
    compiled: Any = torch.compile(bert, backend="aot_eager")
    torch.testing.assert_close(outputs(compiled), want)


class TestWithoutTheLibrary:
    @pytest.fixture(autouse=True)
    def _missing(self, monkeypatch):
        def fail(name):
            raise OSError("it was not built")

        monkeypatch.setattr(native, "load", fail)
        native.best.cache_clear()
        yield
        native.best.cache_clear()

    @pytest.mark.filterwarnings("ignore:lada_kernels")
    def test_the_model_is_unchanged(self, bert):
        want = outputs(bert)
        before = [id(module) for module in bert.modules()]
        assert optimize(bert.train()) is bert
        assert [id(module) for module in bert.modules()] == before
        torch.testing.assert_close(outputs(bert), want, rtol=0, atol=0)

    def test_one_warning_says_why(self, bert):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(2):
                optimize(bert)
        (warning,) = caught
        assert "no native CPU kernels" in str(warning.message)
        assert "it was not built" in str(warning.message)


class TestRefuses:
    @pytest.fixture(autouse=True)
    def _unchanged(self, bert):
        before = [id(module) for module in bert.modules()]
        yield
        assert [id(module) for module in bert.modules()] == before

    def test_another_dtype(self, bert):
        with pytest.raises(ValueError, match=r"dtype torch.float16 on cpu; expected one of"):
            optimize(bert, torch.float16)

    def test_a_model_in_double_precision(self, bert):
        with pytest.raises(TypeError, match=r"is torch.float64 on cpu; expected .*float32"):
            optimize(bert.double())

    @pytest.mark.parametrize("function", [optimize, paths])
    def test_other_types_than_modules(self, function):
        with pytest.raises(TypeError, match=f"{function.__name__}: model is str; expected"):
            function("bert")

    def test_one_weight_in_half_precision(self, bert):
        bert.embeddings.bfloat16()
        with pytest.raises(TypeError, match=r"is torch.float32 on cpu; expected a model in one of"):
            optimize(bert)

    def test_a_model_elsewhere(self, bert):
        with pytest.raises(TypeError, match="on meta; expected"):
            optimize(copy.deepcopy(bert).to("meta"))

    def test_a_model_without_an_encoder(self):
        with pytest.raises(ValueError, match="nothing to optimize in Sequential"):
            optimize(nn.Sequential(nn.Linear(3, 4)))

    def test_a_bare_linear(self):
        with pytest.raises(ValueError, match="nothing to optimize in LowRankLinear"):
            optimize(LowRankLinear(32, 32, 4))

    def test_an_unsupported_dense_model_with_the_reason(self):
        with pytest.raises(ValueError, match=r"within it \(encoder: activation 'gelu_fast' is not"):
            optimize(tiny_bert(hidden_act="gelu_fast"))


class TestASecondTime:
    @pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=str)
    def test_changes_nothing(self, bert, dtype):
        before = [id(module) for module in optimize(bert, torch.bfloat16).modules()]
        assert optimize(bert, dtype) is bert
        assert [id(module) for module in bert.modules()] == before

    def test_in_another_dtype_is_refused(self, bert):
        optimize(bert)
        with pytest.raises(ValueError, match=r"in torch.float32 already: call lada_ops.restore"):
            optimize(bert, torch.int8)

    def test_of_a_part_is_refused(self, bert):
        optimize(bert)
        with pytest.raises(ValueError, match=r"layer.0.* was optimized already, with another"):
            optimize(bert.encoder)

    def test_of_the_whole_is_refused(self, bert):
        optimize(bert)
        with pytest.raises(ValueError, match="0 was optimized already, with another model"):
            optimize(nn.Sequential(bert))


class TestPaths:
    def test_before(self, bert):
        assert set(paths(bert).values()) == {"alone: not optimized"}

    def test_of_a_known_encoder(self, bert):
        found = paths(optimize(bert, torch.bfloat16))
        assert len(found) == 12
        assert set(found.values()) == {"native encoder, bfloat16: compressed"}

    def test_tells_measured_ratios(self, monkeypatch):
        monkeypatch.setattr(choice, "_measured_ratio", lambda sources, dtype: 0.8)
        model = tiny_bert()
        lada_ops.compress(model, 1.1, rank_multiple=1, quiet=True)
        assert set(paths(optimize(model)).values()) == {
            "native encoder, float32: multiplied out, measured 1.25 times as fast as compressed"
        }

    def test_of_an_unsupported_encoder(self):
        why = (
            "not the whole encoder: layers of DebertaLayer are not known; known are BertLayer, "
            "RobertaLayer, XLMRobertaLayer, CamembertLayer, ElectraLayer, TransformerBlock, "
            "MPNetLayer, ModernBertEncoderLayer"
        )
        for how in paths(optimize(compressed("deberta"))).values():
            assert how.startswith("native linear, float32: compressed")
            assert how.endswith(f"; {why}")


def test_single_linears_are_packed_too():
    model = nn.Sequential(LowRankLinear(24, 40, 6, activation="gelu"), nn.Linear(40, 3))
    x = torch.randn(5, 24)
    with torch.no_grad():
        want = model(x)
    optimize(model)
    assert [type(module) for module in model] == [PackedLinear, nn.Linear]
    torch.testing.assert_close(model(x), want, rtol=1e-5, atol=1e-5)


class Doubled(LowRankLinear):
    def forward(self, x, residual=None):
        return 2 * super().forward(x, residual)


@torch.no_grad()
def test_linears_with_a_forward_of_their_own_stay():
    model: Any = nn.Sequential(
        *(kind(24, 24, 6) for kind in (Doubled, LowRankLinear, LowRankLinear))
    )
    own = model[1].forward
    model[1].forward = lambda x: own(x).neg()
    x = torch.randn(5, 24)
    want = model.eval()(x)
    torch.testing.assert_close(optimize(model)(x), want)
    assert [type(module) for module in model] == [Doubled, LowRankLinear, PackedLinear]


@torch.no_grad()
def test_a_feed_forward_that_is_one_op_stays():
    model = nn.Sequential(LowRankFFN(32, 64, 32, 4, 4), LowRankLinear(32, 32, 4))
    x = torch.randn(5, 32)
    want = model(x)
    torch.testing.assert_close(optimize(model)(x), want, rtol=1e-4, atol=1e-5)
    assert isinstance(model[0].up, LowRankLinear)
    assert isinstance(model[1], PackedLinear)


@torch.no_grad()
def test_an_encoder_that_was_changed_keeps_what_it_says():
    model = compress(tiny_bert())
    model.encoder.layer[1].intermediate.intermediate_act_fn = nn.ReLU()
    want = outputs(model)
    torch.testing.assert_close(outputs(optimize(model)), want, rtol=1e-4, atol=1e-5)
    assert set(paths(model).values()) == {
        "native linear, float32: compressed; not the whole encoder: layer 1 computes something "
        "else than a BertLayer of its config does"
    }


def test_two_encoders_in_one_model():
    pair = compress(tiny_bert()), dense("distilbert")
    want = [outputs(model) for model in pair]
    optimize(nn.ModuleList(pair))
    for model, before in zip(pair, want, strict=True):
        torch.testing.assert_close(visible(outputs(model)), visible(before), rtol=1e-4, atol=1e-5)
