"""MPNet, whose encoder adds a relative position bias to the scores."""

import copy

import pytest
import torch
from torch import nn

from lada_ops import optimize, paths
from lada_ops.engine.find import SupportedEncoder, find_encoders
from tests.engine.inputs import MASKS, assert_equal_where_visible, ids
from tests.engine.models import compress, dense, fused


@pytest.fixture(params=[optimize, fused])
def pair(request):
    """A compressed model with large biases, and a copy with an engine."""
    model = dense("mpnet")
    for parameter in model.base_model.encoder.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.2)
    nn.init.normal_(model.base_model.encoder.relative_attention_bias.weight, std=2)
    before = compress(model).base_model
    return before, request.param(copy.deepcopy(before))


@torch.no_grad()
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_masks(pair, mask):
    want, got = (model(ids(), mask)[0] for model in pair)
    assert_equal_where_visible(got, want, mask)


@torch.no_grad()
def test_the_bias_changes_the_outputs(pair):
    before, after = pair
    want = before(ids())[0]
    nn.init.zeros_(before.encoder.relative_attention_bias.weight)
    assert (want - before(ids())[0]).abs().max() > 0.1


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 5])
def test_the_longest_sequences(pair, rows):
    want, got = (model(ids(rows, 38))[0] for model in pair)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_hidden_states_and_attentions(pair):
    arguments = {"output_hidden_states": True, "output_attentions": True}
    want, got = (model(ids(), MASKS["right"], **arguments) for model in pair)
    for after, before in zip(got.hidden_states, want.hidden_states, strict=True):
        assert_equal_where_visible(after, before, MASKS["right"])
    for after, before in zip(got.attentions, want.attentions, strict=True):
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_tuples(pair):
    want, got = (model(ids(), return_dict=False)[0] for model in pair)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_longer_than_the_config_says(pair):
    x = torch.randn(2, 41, 32)
    want, got = (model.encoder(x)[0] for model in pair)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_an_encoder_without_biases_for_all_positions_is_unsupported():
    config = copy.deepcopy(dense("mpnet").base_model.config)
    config.relative_attention_num_buckets = 20
    model = compress(type(dense("mpnet").base_model)(config).eval())
    with torch.no_grad():
        want = model(ids(2, 3))[0]
        optimize(model)
        torch.testing.assert_close(model(ids(2, 3))[0], want, rtol=1e-4, atol=1e-5)
    assert "biases of its 40 positions cannot be had" in [*paths(model).values()][0]


def test_bert_has_no_position_bias():
    (found,) = find_encoders(dense("bert")).values()
    assert isinstance(found, SupportedEncoder)
    assert found.position_bias(5, torch.device("cpu")) is None
