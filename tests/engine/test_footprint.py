"""Parameter count and memory footprint of an optimized model, and of the model before."""

import copy

import pytest
import torch

from lada_ops import optimize, restore
from lada_ops.compression.plan import METHODS
from tests.engine.models import compressed, dense, fused


def model_of(method):
    return dense("bert") if method is None else compressed("bert", method)


@pytest.mark.parametrize("engine", [optimize, fused])
@pytest.mark.parametrize("method", [None, *METHODS])
def test_parameters_are_counted_as_before(method, engine):
    before, after = model_of(method), engine(model_of(method))
    for arguments in ({}, {"exclude_embeddings": True}):
        assert after.num_parameters(**arguments) == before.num_parameters(**arguments)
    assert after.base_model.num_parameters() == before.base_model.num_parameters()
    assert after.num_parameters(only_trainable=True) == 0


@pytest.mark.parametrize("method", [None, "block_sparse"])
def test_memory_is_near_that_before(method):
    before = model_of(method).get_memory_footprint()
    for engine in (optimize, fused):
        assert before <= engine(model_of(method)).get_memory_footprint() < 1.25 * before


def test_int8_saves_memory():
    before = dense("bert")
    after = optimize(copy.deepcopy(before), torch.int8)
    linears = sum(p.numel() for p in before.base_model.encoder.parameters() if p.ndim == 2)
    saved = before.get_memory_footprint() - after.get_memory_footprint()
    assert 2.5 * linears < saved < 3 * linears


def test_a_copy_counts_itself():
    model = optimize(dense("bert"))
    other = copy.deepcopy(model)
    restore(model)
    assert other.num_parameters() == model.num_parameters()
    assert "num_parameters" not in vars(model)
