"""`compress` does all or nothing."""

import pytest
import torch
from torch import nn

from lada_ops import CompressionPlan, LayerPlan, compress, optimize, plan, restore
from lada_ops.compression import compress as swap
from lada_ops.engine.optimize import fast_dtypes
from tests.compression.test_compress import (
    CALIBRATION,
    QUERY,
    Snapshot,
    calibrated,
    fail_on_call,
    make_plan,
)
from tests.tiny_encoders import batch, tiny_bert


@pytest.mark.parametrize("error", [RuntimeError("stop"), KeyboardInterrupt("stop")], ids=repr)
@pytest.mark.parametrize("number", [1, 7])
@pytest.mark.parametrize("stage", ["fit", "to_module", "_layer_report"])
def test_failure_while_fitting(monkeypatch, stage, number, error):
    model = tiny_bert().train()
    before = Snapshot(model)
    monkeypatch.setattr(swap, stage, fail_on_call(getattr(swap, stage), number, error))
    with pytest.raises(type(error), match="stop"):
        calibrated(model, make_plan(model))
    before.assert_unchanged(model)


@pytest.mark.parametrize("error", [RuntimeError("stop"), KeyboardInterrupt("stop")], ids=repr)
@pytest.mark.parametrize("number", [1, 7, 12])
def test_failure_while_replacing(monkeypatch, number, error):
    model = tiny_bert().train()
    before = Snapshot(model)
    failing = fail_on_call(model.set_submodule, number, error)
    monkeypatch.setattr(model, "set_submodule", failing)
    with pytest.raises(type(error), match="stop"):
        compress(model, plan=make_plan(model), quiet=True)
    before.assert_unchanged(model)


@pytest.mark.parametrize("error", [RuntimeError("stop"), KeyboardInterrupt("stop")], ids=repr)
def test_failure_while_recording(monkeypatch, error):
    model = tiny_bert().train()
    before = Snapshot(model)
    monkeypatch.setattr(swap, "record_compression", fail_on_call(None, 1, error))
    with pytest.raises(type(error), match="stop"):
        compress(model, plan=make_plan(model), quiet=True)
    before.assert_unchanged(model)


def test_failure_while_reporting(monkeypatch):
    model = tiny_bert()
    before = Snapshot(model)
    failing = fail_on_call(swap.model_bytes, 2, RuntimeError("stop"))
    monkeypatch.setattr(swap, "model_bytes", failing)
    with pytest.raises(RuntimeError, match="stop"):
        compress(model, plan=make_plan(model), quiet=True)
    before.assert_unchanged(model)


def test_failure_leaves_an_earlier_compression():
    model = tiny_bert()
    compress(model, plan=make_plan(model, layers=r"layer\.0\."), quiet=True)
    before = Snapshot(model)
    nan = {"inputs_embeds": torch.full((3, 9, 32), float("nan"))}
    with pytest.raises(ValueError, match="NaN"):
        compress(
            model,
            plan=make_plan(model, layers=r"layer\.1\."),
            calibration=[nan],
            sequential=False,
            quiet=True,
        )
    before.assert_unchanged(model)


def interrupted():
    yield batch()
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("calibration", "error"),
    [
        (interrupted, KeyboardInterrupt),
        (list, ValueError),
        (lambda: ["text"], ValueError),
        (lambda: [batch(), "text"], TypeError),
        (lambda: [batch() | {"attention_mask": torch.zeros(3, 9)}], ValueError),
        (lambda: 3, TypeError),
        (lambda: [{"no_such_input": 1}], (TypeError, ValueError)),
    ],
    ids=[
        "interrupt",
        "empty",
        "text",
        "mixed",
        "all masked",
        "no iterable",
        "other inputs",
    ],
)
def test_failure_while_calibrating(calibration, error):
    model = tiny_bert().train()
    before = Snapshot(model)
    with pytest.raises(error):
        compress(
            model, plan=make_plan(model), calibration=calibration(), sequential=False, quiet=True
        )
    before.assert_unchanged(model)


def refuses(model, made, error, message, calibration=None):
    before = Snapshot(model)
    with pytest.raises(error, match=message):
        compress(model, plan=made, calibration=calibration, sequential=False, quiet=True)
    before.assert_unchanged(model)


def test_refuses_what_is_no_plan():
    made = make_plan(tiny_bert()).to_dict()
    refuses(tiny_bert(), made, TypeError, "plan is dict; expected CompressionPlan")


def test_refuses_a_plan_without_layers():
    refuses(tiny_bert(), CompressionPlan(), ValueError, "no layers; expected at least one")


def test_refuses_a_plan_with_other_names():
    made = CompressionPlan({"encoder.block.0": LayerPlan("low_rank", 32, 32, 4)})
    message = r"another model: BertModel has no module named 'encoder.block.0'; expected an nn.Lin"
    refuses(tiny_bert(), made, ValueError, message)


def test_refuses_a_plan_for_more_layers():
    made = make_plan(tiny_bert(num_hidden_layers=3))
    refuses(tiny_bert(), made, ValueError, "no module named 'encoder.layer.2")


def test_refuses_a_plan_for_other_shapes():
    made = make_plan(tiny_bert(hidden_size=64))
    message = r"query has \(in, out\) \(32, 32\); the plan expects \(64, 64\)"
    refuses(tiny_bert(), made, ValueError, message)


def test_refuses_a_plan_for_the_transposed_shape():
    name = "encoder.layer.0.intermediate.dense"
    made = CompressionPlan({name: LayerPlan("low_rank", 64, 32, 4)})
    refuses(tiny_bert(), made, ValueError, r"\(32, 64\); the plan expects \(64, 32\)")


def test_refuses_a_plan_for_what_is_no_linear():
    made = CompressionPlan({"embeddings.LayerNorm": LayerPlan("low_rank", 32, 32, 4)})
    refuses(tiny_bert(), made, ValueError, "a LayerNorm named 'embeddings.LayerNorm'; expected")


def test_refuses_a_layer_that_is_compressed_already():
    model = tiny_bert()
    made = make_plan(model)
    compress(model, plan=made, quiet=True)
    refuses(model, made, ValueError, "LowRankLinear named .*; expected an nn.Linear")


def test_nothing_is_left_to_plan_in_a_compressed_model():
    model = tiny_bert()
    compress(model, plan=make_plan(model), quiet=True)
    with pytest.raises(ValueError, match="compressed already"):
        plan(model)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_refuses_weights_that_are_not_finite(value):
    model = tiny_bert()
    made = make_plan(model)
    with torch.no_grad():
        model.get_submodule("encoder.layer.1.output.dense").weight[3, 5] = value
    with pytest.raises(
        ValueError, match="encoder.layer.1.output.dense: the weight holds NaN or inf"
    ):
        compress(model, plan=made, quiet=True)
    assert type(model.get_submodule(QUERY)) is nn.Linear
    assert not hasattr(model.config, "quantization_config")


def test_refuses_missing_calibration():
    model = tiny_bert()
    made = make_plan(model, objective="activations")
    refuses(
        model, made, ValueError, "calibration None for a plan with objective 'activations'; exp"
    )


def test_refuses_superfluous_calibration():
    model = tiny_bert()
    made = make_plan(model, objective="weights")
    message = "calibration given for a plan with objective 'weights'; expected None"
    refuses(model, made, ValueError, message, CALIBRATION)


def test_refuses_a_model_that_another_method_quantized():
    model = tiny_bert()
    made = make_plan(model)
    model.config.quantization_config = {"quant_method": "gptq"}
    with pytest.raises(ValueError, match="BertModel is quantized by 'gptq'; expected a dense"):
        compress(model, plan=made, quiet=True)


def test_restore_refuses_a_part_of_an_optimized_model():
    if not fast_dtypes():
        pytest.skip("no native library was built")
    model = tiny_bert()
    compress(model, plan=make_plan(model), quiet=True)
    optimize(model)
    with pytest.raises(ValueError, match=r"restore: .* was optimized with a larger model"):
        restore(model.encoder)
