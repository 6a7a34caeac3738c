"""Contestants that run an export of the model: onnxruntime and OpenVINO."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .setup import Bind, Call, NotMeasured, Setup, package


def onnxruntime(setup: Setup) -> Bind:
    """onnxruntime with every graph optimisation; int8 by its dynamic quantization per channel."""
    ort = package("onnxruntime")
    path = _onnx(setup) if setup.precision == "fp32" else _int8_onnx(setup)
    options = ort.SessionOptions()
    options.intra_op_num_threads = setup.threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    # spinning within a call is its strength; between calls it would take a core from the others
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def bind(ids: Any) -> Call:
        inputs = _inputs(ids)
        return lambda: session.run(None, inputs)[0]

    return bind


def openvino(setup: Setup) -> Bind:
    """OpenVINO for the least latency: one stream over all threads, in the precision asked for.

    From ONNX, which is as fast for it as converting from torch, by either way; so are static
    shapes, and threads that are not pinned.
    """
    ov = package("openvino")
    core = ov.Core()
    precision = {"fp32": "f32", "bf16": "bf16"}[setup.precision]
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise NotMeasured("OpenVINO has no bf16 on this CPU")
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": setup.threads,
        "INFERENCE_PRECISION_HINT": precision,
    }
    request = core.compile_model(_onnx(setup), "CPU", settings).create_infer_request()

    def bind(ids: Any) -> Call:
        inputs = _inputs(ids)
        return lambda: request.infer(inputs, share_inputs=True, share_outputs=True)[0]

    return bind


def _inputs(ids: Any) -> dict[str, Any]:
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


class _LastHiddenState(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


def _onnx(setup: Setup) -> Path:
    """The model in ONNX, batch and length dynamic, written if it is not there yet."""
    for needed in ("onnx", "onnxscript"):
        package(needed)

    def write(path: Path) -> None:
        model: Any = setup.model()
        # plain products export to fewer operators than sdpa, and onnxruntime is no slower on them
        model.set_attn_implementation("eager")
        ids = torch.ones(2, 24, dtype=torch.long)
        sizes = {0: torch.export.Dim("batch", min=1), 1: torch.export.Dim("length", min=1, max=512)}
        with torch.no_grad():
            torch.onnx.export(
                _LastHiddenState(model),
                (ids, torch.ones_like(ids)),
                path,
                dynamo=True,
                input_names=["input_ids", "attention_mask"],
                output_names=["last_hidden_state"],
                dynamic_shapes={"input_ids": sizes, "attention_mask": sizes},
                verbose=False,
            )

    return _written(setup.export("fp32") / "model.onnx", write)


def _int8_onnx(setup: Setup) -> Path:
    quantization = package("onnxruntime.quantization")

    def write(path: Path) -> None:
        quantization.quantize_dynamic(
            _onnx(setup),
            path,
            op_types_to_quantize=["MatMul"],  # embeddings cost little time and much accuracy
            per_channel=True,
            weight_type=quantization.QuantType.QInt8,
            use_external_data_format=True,
        )

    return _written(setup.export("int8") / "model.onnx", write)


def _written(path: Path, write: Callable[[Path], None]) -> Path:
    """`path`, after `write` unless its folder is there; the folder appears whole or not at all."""
    if not path.exists():
        stage = path.parent.with_name(f"{path.parent.name}.{os.getpid()}")
        stage.mkdir()
        write(stage / path.name)
        os.rename(stage, path.parent)
    return path
