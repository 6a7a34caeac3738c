"""Peers of whole models give the outputs of their references."""

import copy

import pytest
import torch

import lada_ops
from benchmarks import model_peers
from benchmarks.model_peers import (
    Missing,
    peers,
    smaller,
    sparse_tensors,
    two_products,
    two_to_four,
)
from lada_ops.architectures.encoders import encoder_linears
from tests.tiny_encoders import batch, tiny_bert

RATIO = 4


@pytest.fixture(autouse=True)
def _uncompiled(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda model, **options: model)


@pytest.fixture
def dense():
    return tiny_bert(hidden_size=128, num_attention_heads=8, intermediate_size=256)


def compressed(dense, method):
    model = copy.deepcopy(dense)
    plan = lada_ops.plan(model, 2, method, block=(16, 16), rank_multiple=2)
    lada_ops.compress(model, plan=plan, quiet=True)
    return model


def assert_same(model, reference):
    with torch.no_grad():
        got, want = model(**batch())[0], reference(**batch())[0]
    unmasked = batch()["attention_mask"].bool()
    torch.testing.assert_close(got[unmasked], want[unmasked], rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:Sparse BSR")
def test_every_peer_gives_its_references_outputs(dense):
    both = compressed(dense, "low_rank"), compressed(dense, "block_sparse")
    found, missing = peers(dense, *both, RATIO, batch())
    assert list(found) == [
        "dense, compiled",
        "dense, optimized",
        "two products 4x, compiled",
        "smaller dense 4x, compiled",
        "torch BSR 4x",
    ]
    assert missing == {"2:4": "it needs the tensor cores of a GPU"}
    for peer in found.values():
        assert_same(peer.model, peer.reference)


def test_a_peer_that_fails_is_missing(dense, monkeypatch):
    def fails(model):
        raise RuntimeError("no kernel for this GPU")

    monkeypatch.setattr(model_peers, "two_products", fails)
    both = compressed(dense, "low_rank"), compressed(dense, "block_sparse")
    _, missing = peers(dense, *both, RATIO, batch())
    assert "no kernel for this GPU" in missing["two products 4x, compiled"]


def test_two_products_are_linears_of_torch(dense):
    model = two_products(compressed(dense, "low_rank"))
    assert not model_peers._of_type(model, lada_ops.LowRankLinear)
    assert len(model_peers._of_type(model, torch.nn.Sequential)) == 12


@pytest.mark.parametrize("ratio", [2, 4])
def test_a_smaller_model_has_its_share_of_the_weights(dense, ratio):
    def weights(model):
        return sum(linear.weight.numel() for linear in encoder_linears(model).values())

    assert 0.9 < weights(smaller(dense, ratio)) * ratio / weights(dense) <= 1
    assert_same(smaller(dense, 1), dense)


def test_torch_bsr_with_many_tokens_is_missing_on_a_cpu(dense):
    with pytest.raises(Missing, match="minutes for more than 1,024 tokens"):
        sparse_tensors(compressed(dense, "block_sparse"), 1025)


def test_without_tensor_cores_two_to_four_is_missing(dense):
    with pytest.raises(Missing, match="tensor cores"):
        two_to_four(dense)
