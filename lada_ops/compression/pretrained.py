"""Saving and loading through Hugging Face's own `save_pretrained` and `from_pretrained`.

Plan and report travel in the ``quantization_config`` of config.json, the tensors in safetensors
under their module names; importing `lada_ops` registers the config and the quantizer below.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.quantizers.auto import (
    AUTO_QUANTIZER_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from ..formats.bsr import panel_major
from ..modules.block_sparse_linear import BlockSparseLinear, BsrLinear
from ..modules.compressed_linear import CompressedLinear
from ..modules.low_rank_linear import LowRankLinear
from ..modules.sparse_low_rank_linear import SparseLowRankLinear
from .plan import CompressionPlan, LayerPlan
from .report import CompressionReport

METHOD = "lada"
FORMAT_VERSION = 1


class LadaQuantizationConfig(QuantizationConfigMixin):
    """The ``quantization_config`` of a compressed model: plan, report, and format version.

    Raises ValueError on a version that this package doesn't know, a plan or report that is none, or
    that has a layer which the other lacks.
    """

    def __init__(
        self,
        plan: dict[str, Any] | None = None,
        report: dict[str, Any] | None = None,
        format_version: int | None = None,
        **_: Any,
    ) -> None:
        if format_version not in range(1, FORMAT_VERSION + 1):
            raise ValueError(
                f"lada: format_version {format_version!r} in the model's quantization_config; "
                f"expected 1 to {FORMAT_VERSION}: a newer lada-ops may have written it"
            )
        planned = CompressionPlan.from_dict(plan or {}).layers
        reported = CompressionReport.from_dict(report or {}).layers
        if alone := sorted(planned.keys() ^ reported.keys()):
            has, lacks = ("plan", "report") if alone[0] in planned else ("report", "plan")
            raise ValueError(
                f"lada: the {has} has {alone[0]!r}, which the {lacks} lacks; expected the same "
                "layers in both"
            )
        self.quant_method = METHOD  # type: ignore[assignment]
        self.format_version = format_version
        self.plan = plan
        self.report = report


class LadaQuantizer(HfQuantizer):
    """Quantizer that builds the planned modules before `from_pretrained` loads their tensors."""

    requires_calibration = True  # only compressed checkpoints are loaded; `compress` makes them
    is_trainable = True  # type: ignore[assignment]
    is_qat_trainable = True  # type: ignore[assignment]
    is_compileable = True  # type: ignore[assignment]
    quantization_config: LadaQuantizationConfig

    def is_serializable(self, *_: Any, **__: Any) -> bool:  # type: ignore[override]
        return True

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        self.dtype = dtype
        return dtype

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **_: Any) -> None:
        plan = CompressionPlan.from_dict(self.quantization_config.plan or {})
        self.names = {name: _linear_of(model, name) for name in plan.layers}
        saved_as: dict[str, str] = {}
        for saved, name in self.names.items():
            if name in saved_as:
                raise ValueError(
                    f"lada: the plan compresses {name} twice, as {saved_as[name]!r} and {saved!r}; "
                    "expected it once"
                )
            saved_as[name] = saved
            linear = model.get_submodule(name)
            assert isinstance(linear, nn.Linear)
            model.set_submodule(name, _empty_module(name, plan.layers[saved], linear))
            # some parents draw the weights of their linears anew, unless told that this is done
            parent = model.get_submodule(name.rpartition(".")[0])
            setattr(parent, "_is_hf_initialized", True)  # noqa: B010
        self.shapes = {name: tensor.shape for name, tensor in _tensors(model)}

    def _process_model_after_weight_loading(
        self, model: PreTrainedModel, **_: Any
    ) -> PreTrainedModel:
        for name, tensor in _tensors(model):
            self._check_loaded(model, name, tensor)
        for name in self.names.values():
            module = model.get_submodule(name)
            for tensor in module.parameters(recurse=False):
                # tensors lie in memory as in the file, unaligned: slower, and rounded otherwise
                tensor.data = tensor.data.clone()
            if isinstance(module, BsrLinear):
                try:
                    module.update_order()
                except ValueError as error:
                    raise ValueError(f"lada: the checkpoint's {name}: {error}") from None
                module.values.data = panel_major(module.values.data)
        # a key renamed by the base model's prefix keeps the checkpoint's dtype in some releases
        nn.Module.to(model, self.dtype)
        self._rename_layers()
        # a compressed model is an ordinary one: .half(), .to() and Trainer are free to use it
        setattr(model, "is_quantized", False)  # noqa: B010
        return model

    def _check_loaded(self, model: PreTrainedModel, name: str, tensor: Tensor) -> None:
        compressed = name.rpartition(".")[0] in self.names.values()
        if tensor.is_meta and compressed:
            raise ValueError(
                f"lada: {name} is offloaded; expected a device_map that keeps compressed layers "
                "where they compute, without disk"
            )
        expected = tuple(self.shapes[name])
        # an offloaded tensor is read when it is needed
        loaded = tensor.is_meta or getattr(tensor, "_is_hf_initialized", False)
        if not loaded and (compressed or _in_encoder(model, name)):
            raise ValueError(f"lada: the checkpoint lacks {name} of shape {expected}")
        if tensor.shape != expected:  # not every release checks that by itself
            raise ValueError(
                f"lada: the checkpoint's {name} is {tuple(tensor.shape)}; its "
                f"{'plan' if compressed else 'config'} expects {expected}"
            )

    def _rename_layers(self) -> None:
        config = self.quantization_config
        for part in filter(None, (config.plan, config.report)):
            part["layers"] = {self.names[name]: layer for name, layer in part["layers"].items()}


def compression_of(
    model: nn.Module | PreTrainedConfig,
) -> tuple[CompressionPlan, CompressionReport] | None:
    """The plan and the report that a model's config carries; None if the model is dense.

    Raises ValueError if the model is quantized by another method, or by a later lada-ops.
    """
    if not isinstance(model, PreTrainedConfig):
        model = next(iter(pretrained_models(model).values()), model)
    config = getattr(getattr(model, "config", model), "quantization_config", None)
    if config is None:
        return None
    data = config if isinstance(config, dict) else config.to_dict()
    if data.get("quant_method") != METHOD:
        raise ValueError(
            f"{type(model).__name__} is quantized by {data.get('quant_method')!r}; "
            f"expected a dense model, or one compressed by {METHOD!r}"
        )
    known = LadaQuantizationConfig(**data)  # raises on a version that is not
    return (
        CompressionPlan.from_dict(known.plan or {}),
        CompressionReport.from_dict(known.report or {}),
    )


def record_compression(model: nn.Module, plan: CompressionPlan, report: CompressionReport) -> None:
    """Add plan and report to the config of every Hugging Face model in `model`, for saving."""
    configs = {
        owner: _config(owner, _part(plan, report, prefix))
        for prefix, owner in pretrained_models(model).items()
        if any(name.startswith(prefix) for name in plan.layers)
    }
    for owner, config in configs.items():
        owner.config.quantization_config = config


def forget_compression(model: nn.Module) -> None:
    """Remove the compression from the config of every Hugging Face model in `model`."""
    for owner in pretrained_models(model).values():
        if compression_of(owner) is None:
            continue
        delattr(owner.config, "quantization_config")  # noqa: B043
        # what from_pretrained left on a model that it loaded compressed
        for name in ("hf_quantizer", "quantization_method"):
            if hasattr(owner, name):
                delattr(owner, name)


def pretrained_models(model: nn.Module) -> dict[str, PreTrainedModel]:
    """Outermost Hugging Face models in `model`, by the prefix of their modules' names.

    The prefix is "" for `model` itself, "0.model." within sentence-transformers' wrapper.
    """
    found: dict[str, PreTrainedModel] = {}
    for name, module in model.named_modules():
        if isinstance(module, PreTrainedModel) and not any(map(name.startswith, found)):
            found[f"{name}." if name else ""] = module
    return found


def _part(
    plan: CompressionPlan, report: CompressionReport, prefix: str
) -> tuple[CompressionPlan, CompressionReport]:
    """Plan and report of the layers whose names begin with `prefix`, without it."""
    size = len(prefix)
    layers = {n[size:]: layer for n, layer in plan.layers.items() if n.startswith(prefix)}
    reports = {n[size:]: layer for n, layer in report.layers.items() if n.startswith(prefix)}
    return replace(plan, layers=layers), replace(report, layers=reports)


def _config(
    owner: PreTrainedModel, new: tuple[CompressionPlan, CompressionReport]
) -> LadaQuantizationConfig:
    """Config of `owner` with `new` plan and report added to the recorded ones."""
    plan, report = new
    before = compression_of(owner)
    if before is not None:
        old_plan, old_report = before
        plan = replace(plan, layers={**old_plan.layers, **plan.layers})
        report = CompressionReport(
            {**old_report.layers, **report.layers},
            old_report.model_bytes_dense,
            report.model_bytes,
        )
    return LadaQuantizationConfig(plan.to_dict(), report.to_dict(), FORMAT_VERSION)


def _tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    return list(module.state_dict(keep_vars=True).items())


def _in_encoder(model: PreTrainedModel, name: str) -> bool:
    """True if every task needs the tensor: no head's, pooler's or cross-attention's."""
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    may_miss = model._keys_to_ignore_on_load_missing or ()
    return (
        name.startswith(prefix)
        and not re.search(r"^pooler\.|\.crossattention\.", name.removeprefix(prefix))
        and not any(re.search(pattern, name) for pattern in may_miss)
    )


def name_in(model: PreTrainedModel, name: str, kind: type[nn.Module]) -> str | None:
    """Name in `model` of a layer that was recorded with or without a head, so with another prefix.

    None where no module of that kind has such a name.
    """
    prefix = f"{model.base_model_prefix}."
    modules = dict(model.named_modules())
    candidates = name, name.removeprefix(prefix), prefix + name
    return next((one for one in candidates if isinstance(modules.get(one), kind)), None)


def _linear_of(model: PreTrainedModel, name: str) -> str:
    found = name_in(model, name, nn.Linear)
    if found is None:
        raise ValueError(
            f"lada: {type(model).__name__} has no nn.Linear named {name!r}, which the checkpoint's "
            "plan compresses; expected the model class that was saved"
        )
    return found


def _empty_module(name: str, plan: LayerPlan, linear: nn.Linear) -> CompressedLinear:
    """Module for `plan` in the place of `linear`, its tensors still to be loaded."""
    got, size = (linear.in_features, linear.out_features), (plan.in_features, plan.out_features)
    if got != size:
        raise ValueError(
            f"lada: the model's config gives {name} (in, out) {got}; the checkpoint's plan expects "
            f"{size}"
        )
    kwargs: dict[str, Any] = {
        "bias": linear.bias is not None,
        "device": linear.weight.device,
        "dtype": linear.weight.dtype,
    }
    if plan.format == "low_rank":
        assert plan.rank is not None
        return LowRankLinear(*size, plan.rank, **kwargs)
    assert plan.block is not None
    assert plan.density is not None
    if plan.format == "block_sparse":
        return BlockSparseLinear(*size, plan.block, plan.density, **kwargs)
    assert plan.rank is not None
    return SparseLowRankLinear(*size, plan.rank, plan.block, plan.density, **kwargs)


if METHOD not in AUTO_QUANTIZER_MAPPING:  # a reload of this module must not register twice
    register_quantization_config(METHOD)(LadaQuantizationConfig)
    register_quantizer(METHOD)(LadaQuantizer)
