"""The mean of a linear's inputs, and what a bias leaves for the weight to fit."""

import pytest
import torch
from torch import nn

from lada_ops.approximation.svd import damped
from lada_ops.architectures.encoders import encoder_linears
from lada_ops.compression.calibration import LayerStatistics, layer_statistics
from tests.compression.test_calibration import BATCHES, inputs_of
from tests.tiny_encoders import tiny_bert


def test_means_are_those_of_every_real_token():
    model = tiny_bert()
    names = list(encoder_linears(model))
    found, tokens = layer_statistics(model, BATCHES, quiet=True), {name: [] for name in names}
    for inputs in BATCHES:
        for name, x in inputs_of(model, inputs, names).items():
            tokens[name].append(x[inputs["attention_mask"].bool()])
    for name in names:
        assert found[name].mean.dtype == torch.float64
        torch.testing.assert_close(found[name].mean, torch.cat(tokens[name]).mean(0))


def test_inputs_are_centred_where_there_is_a_bias():
    x = torch.randn(50, 4, dtype=torch.float64) + 3
    seen = LayerStatistics(x.T @ x / 50, x.mean(0), torch.eye(4))
    got = seen.centred_for(nn.Linear(4, 4))
    torch.testing.assert_close(got.inputs, x.T.cov(correction=0), rtol=1e-4, atol=1e-4)
    assert seen.centred_for(nn.Linear(4, 4, bias=False)) is seen


@pytest.mark.parametrize("tokens", [1, 3, 1000])
def test_covariance_of_constant_inputs_is_never_negative(tokens):
    """Rounding would make it so: the third of x + x + x is not x."""
    x = torch.full((tokens, 8), 0.1, dtype=torch.float64) * torch.logspace(-4, 4, 8).double()
    seen = LayerStatistics(x.T @ x / tokens, x.sum(0) / tokens, torch.eye(8))
    left = seen.centred_for(nn.Linear(8, 8)).inputs
    assert left.diagonal().min() > 0
    torch.linalg.cholesky(damped(left))
