"""Compressed linears leave torch: for ONNX Runtime and OpenVINO, at any batch and length."""

import io
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim

from lada_ops import BlockSparseLinear, LowRankLinear, SparseLowRankLinear

pytestmark = pytest.mark.filterwarnings("ignore")  # of tracing: sizes are as they are
X, LONGER = torch.randn(2, 5, 48), torch.randn(4, 11, 48)


@pytest.fixture
def model():
    """One linear of each kind, and one with no block."""
    block = {"block": (8, 16), "density": 0.5}
    layers = nn.Sequential(
        LowRankLinear(48, 32, 8, activation="gelu"),
        BlockSparseLinear(32, 64, **block, activation="silu"),
        SparseLowRankLinear(64, 32, 8, **block, activation="gelu_tanh"),
        SparseLowRankLinear(32, 48, 8, (8, 16), 0.0),
    )
    for parameter in layers.parameters():
        nn.init.normal_(parameter, std=0.3)
    return layers.eval()


def assert_says_the_same(got, model: nn.Module) -> None:
    with torch.no_grad():
        torch.testing.assert_close(torch.as_tensor(got), model(LONGER), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dynamo", [True, False], ids=["exported", "traced"])
def test_onnx_runtime(model, dynamo):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    how: dict[str, Any] = {"dynamic_axes": {"x": {0: "batch", 1: "length"}}}
    if dynamo:
        how = {"dynamic_shapes": ({0: Dim.DYNAMIC, 1: Dim.DYNAMIC},)}
    file: Any = io.BytesIO()
    torch.onnx.export(model, (X,), file, dynamo=dynamo, input_names=["x"], verbose=False, **how)
    session = runtime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    assert_says_the_same(session.run(None, {"x": LONGER.numpy()})[0], model)


def test_openvino(model):
    runtime = pytest.importorskip("openvino")
    converted = runtime.convert_model(model, example_input=X)
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = runtime.compile_model(converted, "CPU", exact)
    assert_says_the_same(compiled([LONGER.numpy()])[0], model)


def test_a_trace_is_of_the_operators_of_torch(model):
    traced: Any = torch.jit.trace(model, X)
    kinds = {node.kind() for node in traced.inlined_graph.nodes()}
    assert {kind.partition("::")[0] for kind in kinds} == {"aten", "prim"}
    assert_says_the_same(traced(LONGER), model)
