from typing import Any

import pytest
import torch
from torch import nn

import lada_ops
from lada_ops import (
    BlockSparseLinear,
    CompressionPlan,
    LayerPlan,
    LowRankLinear,
    SparseLowRankLinear,
    compress,
    decompress,
    plan,
)
from lada_ops.architectures.encoders import encoder_linears
from lada_ops.compression import compress as swap
from lada_ops.compression.plan import METHODS
from lada_ops.modules.compressed_linear import CompressedLinear
from tests.tiny_encoders import ARCHITECTURES, batch, outputs, tiny_bert, with_head

MODULES = {
    "low_rank": LowRankLinear,
    "block_sparse": BlockSparseLinear,
    "sparse_low_rank": SparseLowRankLinear,
}
QUERY = "encoder.layer.0.attention.self.query"
CALIBRATION = [batch(), batch(seed=1)]


def make_plan(model, method: Any = "low_rank", ratio=1.7, **kwargs):
    return plan(model, ratio, method, rank_multiple=1, block=(8, 4), **kwargs)


def calibrated(model, made):
    """The report of a compression that is not sequential: all linears at once."""
    return compress(model, plan=made, calibration=CALIBRATION, sequential=False, quiet=True)


@torch.no_grad()
def tokens_at(model, name):
    """The inputs of a linear at the real tokens of the calibration, (tokens, in)."""
    seen = []
    linear = model.get_submodule(name)
    handle = linear.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    for inputs in CALIBRATION:
        model(**inputs)
    handle.remove()
    masks = [inputs["attention_mask"].bool() for inputs in CALIBRATION]
    return torch.cat([t[mask] for t, mask in zip(seen, masks, strict=True)])


def lossless(model):
    """A plan at full rank for every linear of the encoder."""
    return CompressionPlan(
        {
            name: LayerPlan("low_rank", m.in_features, m.out_features, min(m.weight.shape))
            for name, m in encoder_linears(model).items()
        }
    )


class Snapshot:
    """Everything that a failed compression must leave: tensors, modules, modes and config."""

    def __init__(self, model):
        self.tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        self.modules = dict(model.named_modules())
        self.modes = {name: m.training for name, m in self.modules.items()}
        self.config = model.config.to_dict()

    def assert_unchanged(self, model):
        tensors = model.state_dict()
        assert tensors.keys() == self.tensors.keys()
        assert all(torch.equal(tensors[name], t) for name, t in self.tensors.items())
        now = dict(model.named_modules())
        assert all(now[name] is module for name, module in self.modules.items())
        assert {name: m.training for name, m in now.items()} == self.modes
        assert model.config.to_dict() == self.config


def fail_on_call(function, number, error):
    """`function`, but its call number `number` raises `error`."""
    calls = []

    def wrapper(*args, **kwargs):
        calls.append(args)
        if len(calls) == number:
            raise error
        return function(*args, **kwargs)

    return wrapper


class TestCompress:
    @pytest.mark.parametrize("method", METHODS)
    def test_linears_become_modules_of_the_format(self, method):
        model = tiny_bert()
        names = set(encoder_linears(model))
        compress(model, plan=make_plan(model, method), quiet=True)
        assert {n for n, m in model.named_modules() if type(m) is MODULES[method]} == names

    @pytest.mark.parametrize("name", ARCHITECTURES)
    def test_lossless_plan_keeps_the_outputs(self, name):
        model = with_head(name)
        want = outputs(model)
        compress(model, plan=lossless(model), quiet=True)
        torch.testing.assert_close(outputs(model), want, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("method", METHODS)
    def test_outputs_are_those_of_the_reported_error(self, method):
        model, dense = tiny_bert(), tiny_bert()
        report = calibrated(model, make_plan(model, method))
        for name, layer in report.layers.items():
            weight = dense.get_submodule(name).weight.detach()
            rest = weight - model.get_submodule(name).format.to_dense()
            want = float(torch.linalg.norm(rest) / torch.linalg.norm(weight))
            assert layer.weight_error == pytest.approx(want, rel=1e-4)

    @pytest.mark.parametrize("method", METHODS)
    def test_activation_error_is_that_of_the_calibration_tokens(self, method):
        model, dense = tiny_bert(), tiny_bert()
        report = calibrated(model, make_plan(model, method))
        x, linear = tokens_at(dense, QUERY), dense.get_submodule(QUERY)
        with torch.no_grad():
            rest = linear(x) - model.get_submodule(QUERY)(x)
            want = float(torch.linalg.norm(rest) / torch.linalg.norm(x @ linear.weight.T))
        assert report.layers[QUERY].activation_error == pytest.approx(want, rel=1e-4)

    @pytest.mark.parametrize("method", METHODS)
    def test_calibration_lowers_the_activation_error(self, method):
        """Measured with the same tokens, for weights fitted with them and without."""
        first, second = tiny_bert(), tiny_bert()
        fitted = calibrated(first, make_plan(first, method))
        seen = lada_ops.layer_statistics(second, CALIBRATION, quiet=True)
        for name, layer in fitted.layers.items():
            linear = second.get_submodule(name)
            plain = swap.fit(linear.weight, layer.plan)
            rest = linear.weight.detach().double() - plain.to_dense().double()
            size = linear.weight.detach().double()
            gram = seen[name].inputs
            error = ((rest @ gram * rest).sum() / (size @ gram * size).sum()).sqrt()
            assert layer.activation_error is not None
            assert layer.activation_error <= float(error) * 1.01

    def test_report_without_calibration(self):
        model = tiny_bert()
        layer = compress(model, plan=make_plan(model), quiet=True).layers[QUERY]
        assert (layer.objective, layer.activation_error) == ("weights", None)

    def test_report_counts_the_model(self):
        model = tiny_bert()
        dense = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
        report = compress(model, plan=make_plan(model), quiet=True)
        now = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
        assert (report.model_bytes_dense, report.model_bytes) == (dense, now)
        assert dense - now == report.dense.stored_bytes - report.compressed.stored_bytes

    def test_report_counts_what_the_modules_count(self):
        model = tiny_bert()
        report = compress(model, plan=make_plan(model, "sparse_low_rank"), quiet=True)
        for name, layer in report.layers.items():
            assert layer.compressed == model.get_submodule(name).counts()

    def test_compressing_twice_gives_the_same(self):
        first, second = tiny_bert(), tiny_bert()
        for model in (first, second):
            calibrated(model, make_plan(model, "sparse_low_rank"))
        assert torch.equal(outputs(first), outputs(second))

    def test_bias_is_kept_to_the_bit(self):
        model, dense = tiny_bert(), tiny_bert()
        compress(model, plan=make_plan(model), quiet=True)
        assert torch.equal(model.get_submodule(QUERY).bias, dense.get_submodule(QUERY).bias)

    def test_other_modules_are_the_same_objects(self):
        model = tiny_bert()
        before = dict(model.named_modules())
        compress(model, plan=make_plan(model), quiet=True)
        after = dict(model.named_modules())
        changed = {name for name in before if after.get(name) is not before[name]}
        assert changed == set(encoder_linears(tiny_bert()))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
    @pytest.mark.parametrize("method", METHODS)
    def test_dtype_is_kept(self, method, dtype):
        model = tiny_bert().to(dtype)
        calibrated(model, make_plan(model, method))
        assert {p.dtype for p in model.parameters()} == {dtype}
        assert outputs(model).isfinite().all()

    @pytest.mark.parametrize("training", [True, False])
    def test_mode_is_kept(self, training):
        model = tiny_bert().train(training)
        calibrated(model, make_plan(model))
        assert {m.training for m in model.modules()} == {training}

    @pytest.mark.parametrize("frozen", ["weight", "bias"])
    def test_frozen_stays_frozen(self, frozen):
        model = tiny_bert()
        getattr(model.get_submodule(QUERY), frozen).requires_grad_(False)
        compress(model, plan=make_plan(model, "sparse_low_rank"), quiet=True)
        flags = {n: p.requires_grad for n, p in model.get_submodule(QUERY).named_parameters()}
        assert flags == {n: (n == "bias") == (frozen == "weight") for n in flags}

    def test_training_reaches_every_compressed_parameter(self):
        model = tiny_bert()
        compress(model, plan=make_plan(model, "sparse_low_rank"), quiet=True)
        model(**batch()).last_hidden_state.square().sum().backward()
        modules = [m for m in model.modules() if isinstance(m, CompressedLinear)]
        assert all(p.grad is not None for m in modules for p in m.parameters())

    def test_shared_layers_are_compressed_once(self):
        model = with_head("albert")
        report = compress(model, plan=make_plan(model), quiet=True)
        assert len(report.layers) == 6
        assert outputs(model).isfinite().all()

    def test_zero_weights(self):
        model = tiny_bert()
        nn.init.zeros_(model.get_submodule(QUERY).weight)
        report = calibrated(model, make_plan(model, "sparse_low_rank"))
        assert report.layers[QUERY].weight_error == 0
        assert outputs(model).isfinite().all()

    def test_model_without_config(self):
        model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 8))
        report = compress(model, plan=make_plan(model, ratio=1.5, layers=""), quiet=True)
        assert list(report.layers) == ["0", "2"]
        assert model(torch.ones(1, 16)).shape == (1, 8)

    def test_config_holds_plan_and_report(self):
        model = tiny_bert()
        made = make_plan(model)
        report = compress(model, plan=made, quiet=True)
        config = model.config.quantization_config.to_dict()
        assert CompressionPlan.from_dict(config["plan"]) == made
        assert lada_ops.CompressionReport.from_dict(config["report"]) == report

    def test_second_compression_of_other_layers_is_merged(self):
        model = tiny_bert()
        first = compress(model, plan=make_plan(model, layers=r"layer\.0\."), quiet=True)
        second = compress(
            model, plan=make_plan(model, "block_sparse", layers=r"layer\.1\."), quiet=True
        )
        config = model.config.quantization_config.to_dict()
        assert set(config["plan"]["layers"]) == {*first.layers, *second.layers}
        assert set(config["report"]["layers"]) == {*first.layers, *second.layers}
        assert config["report"]["model_bytes_dense"] == first.model_bytes_dense
        assert config["report"]["model_bytes"] == second.model_bytes

    def test_quiet_prints_nothing(self, capfd):
        model = tiny_bert()
        calibrated(model, make_plan(model))
        assert capfd.readouterr() == ("", "")


class TestSharedModules:
    def test_linear_of_two_names_is_replaced_under_both(self):
        model: Any = nn.Module()
        model.a = model.b = nn.Linear(64, 64)
        compress(model, 2, layers="", quiet=True)
        assert isinstance(model.a, LowRankLinear)
        assert model.b is model.a
        decompress(model)
        assert type(model.a) is nn.Linear
        assert model.b is model.a
