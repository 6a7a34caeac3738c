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
    """onnxruntime with all graph optimisations; int8 by its dynamic per-channel quantization."""
    ort = package("onnxruntime")
    path = _onnx(setup) if setup.precision == "fp32" else _int8_onnx(setup)
    options = ort.SessionOptions()
    options.intra_op_num_threads = setup.threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    # threads may spin within a call, but between calls they would take cores from the others
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def bind(ids: Any) -> Call:
        inputs = _inputs(ids)
        return lambda: session.run(None, inputs)[0]

    return bind


def openvino(setup: Setup) -> Bind:
    """OpenVINO with its latency hint: one stream over all threads, in the setup's precision.

    Loaded from ONNX. Conversion from torch, static shapes and unpinned threads were no faster.
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
    """Path of the model in ONNX with dynamic batch and length, exported on first use."""
    for needed in ("onnx", "onnxscript"):
        package(needed)

    def write(path: Path) -> None:
        model: Any = setup.model()
        # eager attention exports to fewer operators than sdpa, and is no slower in onnxruntime
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
    """`path`, written by `write` unless it exists; its folder appears atomically."""
    if not path.exists():
        stage = path.parent.with_name(f"{path.parent.name}.{os.getpid()}")
        stage.mkdir()
        write(stage / path.name)
        os.rename(stage, path.parent)
    return path
