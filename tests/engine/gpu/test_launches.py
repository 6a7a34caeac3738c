"""Number of kernels that an optimized model launches, counted without a GPU."""

import pytest

from tests.engine.gpu.launches import launches_of
from tests.engine.models import compress, fused
from tests.tiny_encoders import tiny_bert

FEW, MANY = (2, 16, 64), (16, 128, 64)  # batch, length, features


def launches_per_layer(method, optimized, size, monkeypatch):
    """Launches that one more layer adds to an encoder."""
    counts = []
    for layers in (1, 2):
        model = tiny_bert(
            num_hidden_layers=layers,
            hidden_size=size[-1],
            intermediate_size=128,
            max_position_embeddings=128,
        )
        if method is not None:
            compress(model, method)
        encoder = (fused(model) if optimized else model).encoder
        counts.append(launches_of(encoder, size, monkeypatch))
    return sum((counts[1] - counts[0]).values())


@pytest.mark.parametrize(
    ("method", "before", "after"),
    [(None, 12, 8), ("low_rank", 12, 4), ("block_sparse", 12, 7), ("sparse_low_rank", 18, 11)],
)
def test_launches_of_a_layer(method, before, after, monkeypatch):
    assert launches_per_layer(method, False, MANY, monkeypatch) == before
    assert launches_per_layer(method, True, MANY, monkeypatch) == after


def test_a_feed_forward_on_few_tokens_takes_two_launches(monkeypatch):
    assert launches_per_layer("low_rank", True, FEW, monkeypatch) == 5
