from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from benchmarks.accuracy.methods import METHODS, SmallerDense
from lada_ops.architectures.encoders import encoder_linears
from lada_ops.distill.run import distill
from tests.distill.models import arguments, collate, examples, tiny_classifier


def minilm() -> Any:
    config = BertConfig(
        vocab_size=40, hidden_size=384, num_hidden_layers=6, num_attention_heads=12,
        intermediate_size=1536,
    )  # fmt: skip
    with torch.device("meta"):
        return BertForSequenceClassification(config)


def weights(model) -> int:
    return sum(linear.weight.numel() for linear in encoder_linears(model).values())


@pytest.mark.parametrize(("ratio", "sizes"), [(2.5, (3, 1072)), (5, (2, 608)), (10, (1, 608))])
def test_a_smaller_dense_model_has_as_few_weights(ratio, sizes):
    model = minilm()
    recipe = SmallerDense(ratio)
    assert recipe.sizes(model) == sizes
    count, neurons = sizes
    left = count * (4 * 384**2 + 2 * 384 * neurons)
    assert 0.98 < left * ratio / weights(model) <= 1


def test_a_smaller_dense_model_starts_as_the_teachers_layers_and_largest_neurons():
    model: Any = tiny_classifier(num_hidden_layers=4)
    up = model.bert.encoder.layer[1].intermediate.dense
    with torch.no_grad():
        up.weight[7] = 9.0
    want = model.bert.encoder.layer[1].attention.self.query.weight.clone()
    recipe = SmallerDense(2.5)
    count, neurons = recipe.sizes(model)
    assert (count, neurons) == (2, 72)
    recipe.build("train", model, [], quiet=True)
    layers = model.bert.encoder.layer
    assert torch.equal(layers[0].attention.self.query.weight, want)
    assert (layers[0].intermediate.dense.weight == 9.0).all(1).sum() == 1
    assert (model.config.num_hidden_layers, model.config.intermediate_size) == (2, neurons)


def test_a_smaller_dense_model_is_distilled(tmp_path):
    student: Any = distill(
        tiny_classifier(num_hidden_layers=4), SmallerDense(2.5), arguments(tmp_path), examples(32),
        collate, quiet=True,
    )  # fmt: skip
    assert len(student.bert.encoder.layer) == 2


@pytest.mark.parametrize("method", [name for name in METHODS if name != "calibration"])
@pytest.mark.parametrize("ratio", [2.5, 5.0, 7.5, 10.0])
def test_every_method_reaches_every_ratio_of_the_table(method, ratio):
    model = minilm()
    recipe = METHODS[method](model, ratio)
    assert recipe is not None
    recipe.check(model)
    if method in ("svd", "pruning", "hybrid", "lada"):
        kept: Any = recipe
        assert weights(model) / kept.nonzeros(model) == pytest.approx(ratio, rel=0.03)
