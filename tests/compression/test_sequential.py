import copy
from typing import Any

import pytest
import torch
from torch import nn

from lada_ops import compress, layer_statistics
from lada_ops.approximation.svd import damped
from lada_ops.architectures.encoders import encoder_linears
from lada_ops.compression.calibration import LayerStatistics
from lada_ops.compression.plan import METHODS
from lada_ops.compression.sequential import InputShift, fit_in_sequence
from tests.compression.test_compress import (
    CALIBRATION,
    QUERY,
    Snapshot,
    lossless,
    make_plan,
    tokens_at,
)
from tests.tiny_encoders import ARCHITECTURES, outputs, tiny_bert, with_head


def random(*shape):
    return torch.randn(shape, dtype=torch.float64)


def shifted_inputs(tokens=60, features=12):
    """Inputs x and x' (tokens, features), and the shift between them without a bias."""
    x = random(tokens, features) @ random(features, features) + 1
    y = x + 0.3 * random(tokens, features) @ random(features, features)
    energy = torch.tensor(0.0)
    shift = InputShift(x.T @ y / tokens, y.T @ y / tokens, x.mean(0), y.mean(0), energy)
    return x, y, shift


def in_sequence(model, method="low_rank", **kwargs):
    """The report of a model compressed with the calibration batches, layer after layer."""
    made = make_plan(model, method, **kwargs)
    return compress(model, plan=made, calibration=CALIBRATION, quiet=True)


def both(model, dense, name):
    """Outputs of a linear in the compressed model and in the dense one, at real tokens."""
    with torch.no_grad():
        now = model.get_submodule(name)(tokens_at(model, name))
        return now, dense.get_submodule(name)(tokens_at(dense, name))


class TestInputShift:
    def test_target_is_the_least_squares_solution(self):
        x, y, shift = shifted_inputs()
        weight, ridge = random(7, 12), (damped(shift.inputs) - shift.inputs).diagonal().sqrt()
        rows = torch.cat([y / len(y) ** 0.5, ridge.diag()])
        wanted = torch.cat([x @ weight.T / len(x) ** 0.5, ridge[:, None] * weight.T])
        want = torch.linalg.lstsq(rows, wanted).solution.T
        torch.testing.assert_close(shift.target(weight), want)

    def test_without_a_shift_the_target_is_the_weight(self):
        x, linear = random(60, 12), nn.Linear(12, 7).double()
        seen = LayerStatistics(x.T @ x / 60, x.mean(0), torch.eye(7))
        weight = linear.weight.detach()
        torch.testing.assert_close(InputShift.none(linear, seen).target(weight), weight)

    def test_inputs_of_zeros_keep_the_weight(self):
        nothing, none = torch.zeros(4, 4).double(), torch.zeros(4).double()
        weight = random(3, 4)
        got = InputShift(nothing, nothing, none, none, none[0]).target(weight)
        torch.testing.assert_close(got, weight)


@pytest.mark.parametrize("method", METHODS)
def test_outputs_are_right_in_the_mean_after_all_layers_before(method):
    model, dense = tiny_bert().double(), tiny_bert().double()
    for name in in_sequence(model, method).layers:
        now, before = both(model, dense, name)
        assert (now - before).abs().max() > 1e-5
        torch.testing.assert_close(now.mean(0), before.mean(0), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["bert", "modernbert"])
def test_the_error_is_that_of_the_compressed_model(name):
    model, dense = with_head(name).double(), with_head(name).double()
    for layer, found in in_sequence(model).layers.items():
        now, before = both(model, dense, layer)
        with torch.no_grad():
            size = tokens_at(dense, layer) @ dense.get_submodule(layer).weight.T
        want = float(torch.linalg.norm(now - before) / torch.linalg.norm(size))
        assert found.activation_error == pytest.approx(want, rel=1e-2, abs=1e-3), layer


def test_each_is_fitted_to_what_the_ones_before_it_give():
    """Against the two whole models, run with what was compressed so far."""
    model, dense = tiny_bert().double(), tiny_bert().double()
    so_far, shifts = copy.deepcopy(dense), {}

    def fit(name, shift):
        x, y = tokens_at(dense, name), tokens_at(so_far, name)
        torch.testing.assert_close(shift.mean, x.mean(0))
        torch.testing.assert_close(shift.shifted_mean, y.mean(0))
        cross = (x - x.mean(0)).T @ (y - y.mean(0)) / len(x)
        torch.testing.assert_close(shift.cross, cross, rtol=1e-4, atol=1e-5)
        inputs = (y - y.mean(0)).T @ (y - y.mean(0)) / len(y)
        torch.testing.assert_close(shift.inputs, inputs, rtol=1e-4, atol=1e-5)
        energy = (x @ dense.get_submodule(name).weight.T).square().sum(1).mean()
        torch.testing.assert_close(shift.energy, energy.detach())
        shifts[name] = shift
        other = copy.deepcopy(dense.get_submodule(name))
        other.weight.data *= 0.9
        later.append((name, other))
        return other

    later: list = []
    order = []

    def step_by_step(name, shift):
        # those that share an input are measured before any of them is replaced
        if name.endswith(("query", "output.dense", "intermediate.dense")):
            for done, module in later:
                so_far.set_submodule(done, module)
            later.clear()
        order.append(name)
        return fit(name, shift)

    fit_in_sequence(model, encoder_linears(model), CALIBRATION, step_by_step)
    assert order == list(encoder_linears(model))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures(name):
    """Layers run once each, but for ALBERT's, which share their weights."""
    model, seen = with_head(name), []
    linears = encoder_linears(model)
    fit_in_sequence(model, linears, CALIBRATION, lambda n, _: seen.append(n) or linears[n])
    assert sorted(seen) == ([] if name == "albert" else sorted(linears))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_lossless_plan_keeps_the_outputs(name):
    model = with_head(name)
    want = outputs(model)
    compress(model, plan=lossless(model), calibration=CALIBRATION, quiet=True)
    torch.testing.assert_close(outputs(model), want, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_the_model_s_own_error_is_lower(method):
    dense = tiny_bert(num_hidden_layers=4)
    errors = []
    for sequential in (False, True):
        model = copy.deepcopy(dense)
        made = make_plan(model, method, ratio=2.5)
        compress(model, plan=made, calibration=CALIBRATION, sequential=sequential, quiet=True)
        now, before = both(model, dense, "encoder.layer.3.output.dense")
        errors.append(float(torch.linalg.norm(now - before)))
    assert errors[1] < errors[0]


def test_statistics_may_be_given_too():
    first, second = tiny_bert(), tiny_bert()
    in_sequence(first)
    seen = layer_statistics(second, CALIBRATION, quiet=True)
    compress(
        second,
        plan=make_plan(second),
        calibration=seen,
        sequential=(b for b in CALIBRATION),
        quiet=True,
    )
    assert torch.equal(outputs(first), outputs(second))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(dtype):
    model = tiny_bert().to(dtype)
    in_sequence(model)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert outputs(model).isfinite().all()


@pytest.mark.parametrize("training", [True, False])
def test_modes_are_kept(training):
    model = tiny_bert(hidden_dropout_prob=0.5).train(training)
    report = in_sequence(model)
    assert {m.training for m in model.modules()} == {training}
    assert list(report.layers) == list(encoder_linears(tiny_bert()))


def test_a_model_that_fails_is_left_as_it_was():
    model = tiny_bert().train()
    before = Snapshot(model)
    made = make_plan(model)
    batches: list[Any] = [*CALIBRATION, "text"]
    with pytest.raises(TypeError, match="batch 2 is str; expected a dict"):
        compress(model, plan=made, calibration=CALIBRATION, sequential=batches, quiet=True)
    before.assert_unchanged(model)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_refuses_batches_for_weights_alone():
    model = tiny_bert()
    made = make_plan(model, objective="weights")
    with pytest.raises(ValueError, match="calibration given for a plan with objective 'weights'"):
        compress(model, plan=made, calibration=CALIBRATION, quiet=True)


def test_refuses_batches_without_one():
    model = tiny_bert()
    seen = layer_statistics(model, CALIBRATION, quiet=True)
    with pytest.raises(ValueError, match="sequential: no batches; expected at least one"):
        compress(model, plan=make_plan(model), calibration=seen, sequential=[], quiet=True)
    assert type(model.get_submodule(QUERY)) is nn.Linear
