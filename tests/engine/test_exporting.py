"""Tracers, exporters and transforms of an optimized model: they work, or the error says why."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

from lada_ops import LowRankLinear, optimize, restore
from tests.engine.inputs import ids, mask_of
from tests.engine.models import compress, fused
from tests.tiny_encoders import tiny_bert

INSTEAD = r"export, trace or transform it before lada_ops.optimize, or call lada_ops.restore first"
MASK = mask_of("111111111", "111100000", "100000000")


class Embedding(nn.Module):
    """Model whose output is a tensor, for tracers."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask):
        return self.model(input_ids, attention_mask).last_hidden_state


def packed():
    return optimize(nn.Sequential(LowRankLinear(32, 48, 4)).eval())


def causes(error):
    """Messages of an error and of its causes."""
    while error is not None:
        yield str(error)
        error = error.__cause__ or error.__context__


def assert_refused(export, *arguments):
    with pytest.raises(Exception) as caught:  # noqa: PT011  each exporter has its own
        export(*arguments)
    assert any("lada_ops.restore" in message for message in causes(caught.value)), caught.value


def onnx(dynamo):
    def export(model, inputs):
        torch.onnx.export(model, inputs, "unused.onnx", dynamo=dynamo, verbose=False)

    return export


def openvino(model, inputs):
    import openvino

    openvino.convert_model(model, example_input=inputs)


EXPORTERS: dict[str, Any] = {
    "torch.jit.trace": torch.jit.trace,
    "torch.export": torch.export.export,
    "torch.export, strict": lambda m, x: torch.export.export(m, x, strict=True),
    "torch.onnx, traced": onnx(False),
    "torch.onnx": onnx(True),
    "openvino": openvino,
    "make_fx": lambda m, x: make_fx(m)(*x),
}


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")  # of exporters that fail
@pytest.mark.parametrize("export", EXPORTERS.values(), ids=EXPORTERS)
@pytest.mark.parametrize("what", ["model", "encoder", "linear"])
def test_exporters_are_refused(what, export, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if what == "model":
        module, inputs = optimize(compress(tiny_bert())), (ids(), MASK)
    elif what == "encoder":
        module, inputs = Embedding(optimize(compress(tiny_bert()))), (ids(), MASK)
    else:
        module, inputs = packed(), (torch.randn(5, 32),)
    assert_refused(export, module.eval(), inputs)


TRANSFORMS: dict[str, Any] = {
    "vmap": lambda f, x: torch.func.vmap(f)(x),
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (x,)),
    "grad": lambda f, x: torch.func.grad(lambda x: f(x).sum())(x),
    "functionalize": lambda f, x: torch.func.functionalize(f)(x),
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_transforms_of_torch_func_are_refused(transform):
    with pytest.raises(RuntimeError, match=INSTEAD):
        transform(packed(), torch.randn(3, 5, 32))


def test_tangents_are_refused():
    with (
        torch.no_grad(),
        forward_ad.dual_level(),
        pytest.raises(RuntimeError, match=f"forward-mode differentiation; .*{INSTEAD}"),
    ):
        packed()(forward_ad.make_dual(torch.randn(5, 32), torch.randn(5, 32)))


def test_a_negative_view_keeps_its_sign():
    model, x = packed(), torch.randn(5, 32)
    negative: Any = torch
    torch.testing.assert_close(model(negative._neg_view(x)), model(-x), rtol=0, atol=0)


@torch.no_grad()
def test_the_compiler_leaves_linears_alone(recwarn):
    model, x = packed(), torch.randn(5, 32)
    compiled: Any = torch.compile(model, backend="eager")
    torch.testing.assert_close(compiled(x), model(x), rtol=0, atol=0)
    assert [w for w in recwarn if "Dynamo" in str(w.message)] == []


def test_fused_layers_are_not_traced():
    model = Embedding(fused(compress(tiny_bert())))
    with torch.no_grad():
        assert_refused(torch.jit.trace, model, (ids(), MASK))


@torch.no_grad()
def test_fused_layers_are_exported():
    model = Embedding(fused(compress(tiny_bert()))).eval()
    program: Any = torch.export.export(model, (ids(), MASK)).module()
    got, want = program(ids(), MASK), model(ids(), MASK)
    torch.testing.assert_close(got[MASK.bool()], want[MASK.bool()], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_restored_model_is_exported():
    model = Embedding(restored(optimize(compress(tiny_bert())))).eval()
    program: Any = torch.export.export(model, (ids(), MASK)).module()
    torch.testing.assert_close(program(ids(), MASK), model(ids(), MASK))


def restored(model):
    restore(model)
    return model
