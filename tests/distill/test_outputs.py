from typing import Any

import pytest
import torch
from transformers import (
    DistilBertConfig,
    DistilBertModel,
    ModernBertConfig,
    ModernBertModel,
    MPNetConfig,
    MPNetModel,
)

from lada_ops.distill.losses import Losses
from lada_ops.distill.outputs import forward
from tests.distill.models import collate, examples, tiny_classifier

SMALL: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def batch():
    return collate(examples(3))


def test_scores_are_those_that_attention_is_made_of():
    model = tiny_classifier(attn_implementation="eager")
    inputs = batch()
    with torch.no_grad():
        outputs = forward(model, inputs, Losses())
        want = model(**inputs, output_attentions=True).attentions
    mask = inputs["attention_mask"].bool()[:, None, None]
    assert len(outputs.scores) == 2
    for scores, probabilities in zip(outputs.scores, want, strict=True):
        masked = scores.masked_fill(~mask, -torch.inf)
        torch.testing.assert_close(masked.softmax(-1), probabilities, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "model",
    [
        DistilBertModel(
            DistilBertConfig(vocab_size=40, dim=32, hidden_dim=64, n_layers=2, n_heads=2)
        ),
        MPNetModel(MPNetConfig(**SMALL, intermediate_size=64)),
    ],
    ids=lambda model: type(model).__name__,
)
def test_other_encoders_have_scores_too(model):
    outputs = forward(model.eval(), {k: v for k, v in batch().items() if k != "labels"}, Losses())
    length = batch()["input_ids"].shape[1]
    assert [s.shape for s in outputs.scores] == [(3, 2, length, length)] * 2
    assert len(outputs.hidden) == 3
    assert outputs.logits is None


def test_nothing_is_recorded_that_does_not_count():
    model = tiny_classifier()
    outputs = forward(model, batch(), Losses(attention=0, hidden=0))
    assert (outputs.hidden, outputs.scores) == ((), [])
    assert outputs.loss is not None


def test_hooks_are_gone_after_an_error():
    model = tiny_classifier()
    with pytest.raises(IndexError):
        forward(model, batch() | {"input_ids": torch.full((3, 4), 10**6)}, Losses())
    assert not any(m._forward_hooks for m in model.modules() if isinstance(m, torch.nn.Linear))


def test_layers_without_queries_of_their_own_are_refused():
    model = ModernBertModel(ModernBertConfig(**SMALL, intermediate_size=64, pad_token_id=0))
    with pytest.raises(ValueError, match="attention above 0 for a ModernBertModel"):
        forward(model, batch(), Losses())
