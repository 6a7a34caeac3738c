"""Biases make up for what compressed weights lose in the mean."""

import pytest
import torch

from lada_ops.approximation.svd import damped
from lada_ops.compression.plan import METHODS
from tests.compression.test_compress import QUERY, calibrated, make_plan, tokens_at
from tests.tiny_encoders import tiny_bert, with_head


@pytest.mark.parametrize("objective", ["activations", "outputs"])
@pytest.mark.parametrize("method", METHODS)
def test_outputs_are_right_in_the_mean(method, objective):
    model, dense = tiny_bert().double(), tiny_bert().double()
    linear = dense.get_submodule(QUERY)
    calibrated(model, make_plan(model, method, objective=objective))
    x = tokens_at(dense, QUERY)
    with torch.no_grad():
        rest = linear(x) - model.get_submodule(QUERY)(x)
    assert rest.abs().max() > 1e-3
    torch.testing.assert_close(rest.mean(0), torch.zeros(32).double(), rtol=0, atol=1e-12)


def test_weight_and_bias_are_fitted_together():
    """No weight of that rank does better with any bias (Eckart-Young, inputs centred)."""
    model, dense = tiny_bert().double(), tiny_bert().double()
    report = calibrated(model, make_plan(model, objective="activations"))
    for name, layer in report.layers.items():
        x, weight = tokens_at(dense, name), dense.get_submodule(name).weight.detach()
        centred = (x - x.mean(0)) / len(x) ** 0.5
        damping = damped(centred.T @ centred) - centred.T @ centred
        least, most = (
            torch.linalg.norm(torch.linalg.svdvals(inputs @ weight.T)[layer.plan.rank :])
            for inputs in (centred, torch.cat([centred, damping.sqrt()]))
        )
        got = (layer.activation_error or 0) * torch.linalg.norm(x @ weight.T) / len(x) ** 0.5
        assert least * (1 - 1e-6) <= got <= most * (1 + 1e-3), name


def test_without_a_bias_there_is_nothing_to_shift():
    model, dense = with_head("modernbert"), with_head("modernbert")
    report = calibrated(model, make_plan(model, objective="activations"))
    name = next(iter(report.layers))
    assert model.get_submodule(name).bias is None
    x, weight = tokens_at(dense, name), dense.get_submodule(name).weight.detach()
    rank = report.layers[name].plan.rank
    least = torch.linalg.norm(torch.linalg.svdvals(x @ weight.T)[rank:])
    got = torch.linalg.norm(x @ (weight - model.get_submodule(name).format.to_dense()).T)
    assert float(got) <= 1.03 * float(least)
