"""Contestants that run torch modules: eager, compiled, packed, quantized, and ours."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import lada_ops
from benchmarks import model_peers

from .setup import Bind, Call, NotMeasured, Setup


def eager(setup: Setup) -> Bind:
    """Unchanged model: Hugging Face's modules, and ours where it is compressed."""
    return _bind(_in_precision(setup))


def compiled(setup: Setup) -> Bind:
    """torch.compile with its fastest options on this device."""
    return _bind(model_peers.compiled(_in_precision(setup)))


def packed(setup: Setup) -> Bind:
    """Linears with weights packed once into oneDNN's layout."""
    for op in ("_reorder_linear_weight", "_linear_pointwise"):
        if not hasattr(torch.ops.mkldnn, op):
            raise NotMeasured(f"this torch has no mkldnn.{op}")
    model = setup.model()
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear):
            model.set_submodule(name, OneDnnLinear(module))
    return _bind(model)


class OneDnnLinear(nn.Module):
    """`nn.Linear` with its weight in oneDNN's packed layout."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), None)
        self._bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")


def int8_dynamic(setup: Setup) -> Bind:
    """Dynamic int8 quantization of all linears by torch."""
    quantize = getattr(torch.ao.quantization, "quantize_dynamic", None)
    if quantize is None:
        raise NotMeasured("this torch has no quantize_dynamic, and torchao is no part of it")
    return _bind(quantize(setup.model(), {nn.Linear}, dtype=torch.qint8))


def lada_engine(setup: Setup) -> Bind:
    """`lada_ops.optimize` in the contestant's precision."""
    optimize = getattr(lada_ops, "optimize", None)
    if optimize is None:
        raise NotMeasured("lada_ops has no optimize")
    dtypes = {"fp32": {}, "bf16": {"dtype": torch.bfloat16}, "int8": {"dtype": torch.int8}}
    return _bind(optimize(setup.model(), **dtypes[setup.precision]))


def _in_precision(setup: Setup) -> Any:
    model = setup.model()
    return model.bfloat16() if setup.precision == "bf16" else model


def _bind(model: Any) -> Bind:
    def bind(ids: Any) -> Call:
        inputs = {"input_ids": torch.from_numpy(ids)}
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])

        def call() -> Tensor:
            with torch.no_grad():
                return model(**inputs).last_hidden_state

        return call

    return bind
