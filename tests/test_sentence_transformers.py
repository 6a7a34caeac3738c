"""Embedders of sentence-transformers: calibrated and compressed as they are."""

import copy

import pytest
import torch
from torch import nn

from lada_ops import compress, layer_statistics
from tests.compression.test_compress import make_plan
from tests.tiny_model import write_tiny_model

SENTENCES = [["the dog sleeps", "a cat"], ["old house under the cat .", "the the"]]


@pytest.fixture(scope="module")
def embedder(tmp_path_factory):
    module = pytest.importorskip("sentence_transformers")
    folder = write_tiny_model(tmp_path_factory.mktemp("embedder"))
    return module.SentenceTransformer(str(folder), device="cpu")


@pytest.fixture
def batches(embedder):
    """Batches as the model's tokenizer returns them: with more than tensors."""
    return [embedder.tokenize(sentences) for sentences in SENTENCES]


def inner(batches):
    """The same batches for the transformer within."""
    return [{n: t for n, t in b.items() if isinstance(t, torch.Tensor)} for b in batches]


@pytest.mark.parametrize("named", [False, True], ids=["as they are", "by name"])
def test_statistics_are_those_of_the_transformer_within(embedder, batches, named):
    given = [{"input": batch} for batch in batches] if named else batches
    before = [dict(batch) for batch in batches]
    got = layer_statistics(embedder, given, quiet=True)
    want = layer_statistics(embedder[0].model, inner(batches), quiet=True)
    assert list(got) == [f"0.model.{name}" for name in want]
    for one, other in zip(got.values(), want.values(), strict=True):
        torch.testing.assert_close(vars(one), vars(other), rtol=0, atol=0)
    assert [list(batch) for batch in batches] == [list(batch) for batch in before]


def test_compressed_in_sequence_as_the_transformer_within(embedder, batches):
    whole = copy.deepcopy(embedder)
    alone = copy.deepcopy(embedder[0].model)
    compress(whole, plan=make_plan(whole), calibration=batches, quiet=True)
    compress(alone, plan=make_plan(alone), calibration=inner(batches), quiet=True)
    torch.testing.assert_close(whole[0].model.state_dict(), alone.state_dict(), rtol=0, atol=0)


def test_an_answer_without_a_gradient_is_refused():
    class Detached(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x):
            return {"x": x, "y": self.linear(x).detach()}

    with pytest.raises(ValueError, match="no tensor of what the model answers, dict, has a grad"):
        layer_statistics(Detached(), [{"x": torch.ones(1, 4)}], "linear", quiet=True)
