import copy

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from transformers import AutoTokenizer

import lada_ops
from lada_ops.compression.folder import load_model
from lada_ops.data.glue import SentencePairs
from lada_ops.evaluate.embeddings import embed, full_batches, quality
from tests.tiny_model import write_tiny_model

SENTENCES = ["the dog", "a cat sleeps under the old house", "the dog"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(write_tiny_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def dense(folder):
    return load_model(folder, "cpu")


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


def test_embeddings_are_normalised_means_over_real_tokens_in_any_batch(dense, tokenizer):
    got = embed(dense, tokenizer, SENTENCES)
    for sentence, embedding in zip(SENTENCES, got, strict=True):
        states = dense(**tokenizer(sentence, return_tensors="pt")).last_hidden_state[0]
        want = F.normalize(states.mean(0), dim=0)
        torch.testing.assert_close(embedding, want, rtol=1e-4, atol=1e-5)


def test_costs_and_agreement_of_the_dense_model(dense):
    embeddings = F.normalize(torch.randn(4, 8), dim=1)
    row = quality("dense", dense, embeddings, embeddings, None)
    assert row["model_bytes"] == 4 * sum(p.numel() for p in dense.parameters())
    linears = lada_ops.plan(dense, 2).layers
    tensors = [p for name in linears for p in dense.get_submodule(name).parameters()]
    assert row["linears_bytes"] == 4 * sum(p.numel() for p in tensors)
    assert row["linears_ratio"] == 1
    assert row["cosine_min"] == pytest.approx(1)
    assert row["spearman"] is None


def test_costs_of_a_compressed_model_are_those_of_its_report(dense):
    model = copy.deepcopy(dense)
    report = lada_ops.compress(model, 4, quiet=True)
    row = quality("4x", model, torch.ones(1, 1), torch.ones(1, 1), None)
    assert row["linears_bytes"] == report.compressed.stored_bytes
    assert row["linears_ratio"] == report.ratio


def test_agreement_is_the_cosine_and_the_rank_correlation(dense):
    torch.manual_seed(0)
    got, want = (F.normalize(torch.randn(10, 8), dim=1) for _ in range(2))
    pairs = SentencePairs([""] * 5, [""] * 5, [0.0, 3.0, 1.0, 4.0, 2.0])
    row = quality("other", dense, got, want, pairs)
    cosine = F.cosine_similarity(got, want)
    assert row["cosine_mean"] == pytest.approx(float(cosine.mean()))
    assert row["cosine_min"] == pytest.approx(float(cosine.min()))
    similarity = F.cosine_similarity(got[:5], got[5:])
    assert row["spearman"] == pytest.approx(spearmanr(similarity, pairs.scores)[0])


def test_full_batches_have_no_padding(tokenizer):
    batches = full_batches(tokenizer, SENTENCES, torch.device("cpu"))
    for size, batch in batches.items():
        assert "x".join(map(str, batch["input_ids"].shape)) == size
        assert batch["attention_mask"].all()
