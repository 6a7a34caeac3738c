"""`optimize`: preparation of a model for inference, and its inverse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel

from ..modules.checks import check_module
from ..modules.compressed_linear import CompressedLinear
from ..modules.low_rank_ffn import LowRankFFN
from ..ops.dispatch import KERNEL_DTYPES
from .bypassed import copied_module
from .cpu.native import LinearPacker, NativeEngine, pack_encoder
from .find import SupportedEncoder, find_encoders
from .footprint import MemoryFootprint, ParameterCount
from .forward import EncoderForward, LayerForward, ModelForward
from .gpu.fused import FusedEngine
from .record import FUSED, Record, optimized_part, record_of
from .watch import Watch

DTYPES = (torch.float32, torch.bfloat16, torch.int8)
"""Dtypes that encoders on the CPU compute in."""
Model = TypeVar("Model", bound=nn.Module)


def optimize(model: Model, dtype: torch.dtype | None = None) -> Model:
    """Prepare `model` for inference in place, on the CPU or a GPU; returns it.

    Its encoder, compressed or dense, runs without padding and in few calls: on the CPU in a single
    native call; on a GPU in four launches per low-rank layer (five on few tokens) and in eight per
    dense one. In encoders of unsupported architectures, and those that compute something else than
    their class and config say (each layer is tried on a few tokens), only the compressed linears
    are replaced, one by one; `paths` tells which, and why. Seen from outside the model stays as it
    was: inputs, outputs, hidden states, attention weights, `state_dict` and `save_pretrained`.
    Where attention weights are requested, layers have hooks, or an argument is unknown to the
    engine, the layers' own submodules compute the result.

    Outputs at positions that the attention mask hides are 0, or undefined: pool with the mask.
    ``last_hidden_state.mean(1)`` of a padded batch changes.

    The model is frozen in eval mode: train, load, move and export it before. `lada_ops.restore`
    undoes all of it. Later changes of the encoder are detected: it then runs by its own modules,
    with a warning; code from torch.compile does not notice. Tracers, exporters and transforms of
    torch.func are refused on the CPU. In a forked process the native kernels use one thread. On the
    CPU the weights are kept in packed form only; without the native library (see the README) the
    model is left as it is, with one warning. An optimized model is returned as it is.

    dtype: what the encoder computes in. On the CPU float32, bfloat16, or int8: weights with a scale
        per output, inputs with a scale per token, taken at run time; attention is then in bfloat16
        on CPUs that multiply it, and the rest in float32. The default is float32, or bfloat16 for a
        model in bfloat16 on CPUs where that is fast. Inputs and outputs of the model keep their
        dtype. On a GPU the model's own.

    Raises TypeError or ValueError, with the model unchanged, on a model that is not in one of fp32,
    fp16 and bf16 on the CPU or one GPU; on another dtype; on a model of which a part is optimized
    already; and on one without compressed linears and supported encoders.
    """
    check_module("optimize", model)
    done = record_of(model)
    if done is not None:
        if dtype not in (None, done.dtype):
            raise ValueError(
                f"optimize: dtype {dtype}; the model was optimized in {done.dtype} already: call "
                "lada_ops.restore first"
            )
        return model
    part = optimized_part(model)
    if part is not None:
        raise ValueError(
            f"optimize: {part or 'the model'} was optimized already, with another model; expected "
            "lada_ops.restore of that one first"
        )
    on_cpu, dtype = _placement(model, dtype)
    encoder_or_reason = find_encoders(model)
    encoders = [e for e in encoder_or_reason.values() if isinstance(e, SupportedEncoder)]
    alone = _linears_outside(model, encoders)
    if not encoders and not alone:
        reasons = "; ".join(f"{name}: {why}" for name, why in encoder_or_reason.items())
        raise ValueError(
            f"optimize: nothing to optimize in {type(model).__name__}; expected an encoder of a "
            "known kind, or compressed linears, within it" + (f" ({reasons})" if reasons else "")
        )
    if on_cpu:
        from lada_kernels.cpu import native

        if native.best() is None:
            return model.eval()
        record = _pack(model, encoders, alone, dtype)
    else:
        record = fuse(model, encoders, dtype)
        record.how |= dict.fromkeys(alone, "its own kernel")
    for encoder, why in encoder_or_reason.items():
        for name in alone:
            if name.startswith(f"{encoder}.") and isinstance(why, str):
                record.how[name] += f"; not the whole encoder: {why}"
    return model


def fuse(model: nn.Module, encoders: Sequence[SupportedEncoder], dtype: torch.dtype) -> Record:
    """Replace the forwards of `encoders` in `model` by those of fused layers, on any device."""
    engines = [FusedEngine(encoder) for encoder in encoders]
    record, names = Record(dtype), _names(model)
    for encoder, engine in zip(encoders, engines, strict=True):
        for layer, fused in zip(encoder.layers, engine.layers, strict=True):
            for name, how in fused.how.items():
                record.how[_join(names[layer], name)] = f"fused layer, {_short(dtype)}: {how}"
            record.layers.append(layer)
            layer.add_module(FUSED, fused)
        _take_over(encoder, engine, record)
    _finish(model, record)
    return record


def _pack(
    model: nn.Module,
    encoders: Sequence[SupportedEncoder],
    alone: dict[str, CompressedLinear],
    dtype: torch.dtype,
) -> Record:
    """Replace `encoders` in `model`, and the linears `alone`, by packed ones for native kernels."""
    packer = LinearPacker()
    for name, linear in alone.items():
        packer.pack({name: linear}, dtype)
    engines = [pack_encoder(encoder, dtype) for encoder in encoders]
    record, names = Record(dtype), _names(model)
    for name, why in packer.reasons.items():
        record.how[name] = f"native linear, {_short(dtype)}: {why}"
    modules = dict(packer.modules)
    for encoder, (_, packers) in zip(encoders, engines, strict=True):
        for layer, packer in zip(encoder.layers, packers, strict=True):
            for name, linear in packer.modules.items():
                modules[_join(names[layer], name)] = linear
                how = f"native encoder, {_short(dtype)}: {packer.reasons[name]}"
                record.how[_join(names[layer], name)] = how
    for name, linear in modules.items():  # all of them before the first is set
        source = copied_module(model.get_submodule(name), with_hooks=True)
        record.sources[linear] = source.to("meta")
    record.replace(model, modules)
    for encoder, (engine, _) in zip(encoders, engines, strict=True):
        _take_over(encoder, engine, record)
    _finish(model, record)
    return record


def _take_over(
    encoder: SupportedEncoder, engine: NativeEngine | FusedEngine, record: Record
) -> None:
    """Replace the forwards of the encoder, its layers and its model by those of the engine."""
    forward = EncoderForward(encoder, engine)
    if encoder.module is not encoder.model:  # a model prepares more than x for its layers
        record.set(encoder.module, "forward", forward)
        for i, layer in enumerate(encoder.layers):
            record.set(layer, "forward", LayerForward(encoder, i, engine))
    if encoder.model is not None and "forward" not in vars(encoder.model):
        model_forward = ModelForward(encoder.model, encoder.architecture, forward)
        record.set(encoder.model, "forward", model_forward)
    engine.watch = Watch(encoder.modules(), encoder.config, engine.copies, encoder.model)


def _finish(model: nn.Module, record: Record) -> None:
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            record.set(module, "num_parameters", ParameterCount(module))
            record.set(module, "get_memory_footprint", MemoryFootprint(module))
    record.freeze(model)


def fast_dtypes() -> tuple[torch.dtype, ...]:
    """Dtypes with fast instructions on this CPU; none without the native library.

    `optimize` takes every one of `DTYPES` on every CPU, but the others may be slower than float32.
    """
    from lada_kernels.cpu import native
    from lada_kernels.cpu.instruction_sets import WITH_BF16

    best = native.best()
    if best is None:
        return ()
    return DTYPES if best[0] in WITH_BF16 else DTYPES[:1]


def paths(model: nn.Module) -> dict[str, str]:
    """Kernel or module that computes each compressed or optimized linear, and why, by name."""
    check_module("paths", model)
    how: dict[str, str] = {}
    for prefix, module in model.named_modules():
        record = record_of(module)
        if record is not None:
            how |= {_join(prefix, name): text for name, text in record.how.items()}
        elif isinstance(module, CompressedLinear) and prefix not in how:
            how[prefix] = "alone: not optimized"
    return how


def restore(model: nn.Module) -> list[str]:
    """Undo `optimize` on `model` and its submodules, in place; nothing where none was optimized.

    Weights that were packed in less than fp32 come back rounded to it. Compressed linears stay
    compressed: `lada_ops.decompress` makes them dense.
    Returns the names of the modules changed.

    Raises ValueError, the model unchanged, on a part of a model that was optimized as a whole.
    """
    check_module("restore", model)
    records = {name: r for name, m in model.named_modules() if (r := record_of(m)) is not None}
    part = optimized_part(model)
    if not records and part is not None:
        raise ValueError(
            f"restore: {part or 'the model'} was optimized with a larger model; expected that one"
        )
    return [
        _join(prefix, name)
        for prefix, record in records.items()
        for name in record.undo(model.get_submodule(prefix))
    ]


def _placement(model: nn.Module, dtype: torch.dtype | None) -> tuple[bool, torch.dtype]:
    """True if the model is on the CPU, and the dtype that its encoder computes in.

    Raises as `optimize`.
    """
    parameters = dict(model.named_parameters())
    first = next(iter(parameters.values()), torch.empty(0, dtype=torch.float32, device="cpu"))
    on_cpu = first.device.type == "cpu"
    allowed = DTYPES if on_cpu else (first.dtype,)
    if dtype is not None and dtype not in allowed:
        raise ValueError(f"optimize: dtype {dtype} on {first.device}; expected one of {allowed}")
    supported = KERNEL_DTYPES if on_cpu or first.is_cuda else ()
    for name, tensor in parameters.items():
        alike = (tensor.device, tensor.dtype) == (first.device, first.dtype)
        if not alike or tensor.dtype not in supported:
            raise TypeError(
                f"optimize: {name} is {tensor.dtype} on {tensor.device}; expected a model in one "
                f"of {KERNEL_DTYPES} on the CPU or on one GPU"
            )
    if not on_cpu or first.dtype in fast_dtypes():
        return on_cpu, dtype or first.dtype
    return on_cpu, dtype or torch.float32


def _linears_outside(
    model: nn.Module, encoders: Sequence[SupportedEncoder]
) -> dict[str, CompressedLinear]:
    """Compressed linears outside of `encoders` and of `LowRankFFN`s, by name.

    Those with a foreign forward are left out.
    """
    inside = {m for e in encoders for layer in e.layers for m in layer.modules()}
    for module in model.modules():
        if isinstance(module, LowRankFFN):
            inside |= {*module.children()}
    return {
        name: module
        for name, module in model.named_modules()
        if name and isinstance(module, CompressedLinear) and module not in inside
        if "forward" not in vars(module) and type(module).forward.__module__.startswith("lada_ops.")
    }


def _names(model: nn.Module) -> dict[nn.Module, str]:
    return {module: name for name, module in model.named_modules()}


def _join(*names: str) -> str:
    return ".".join(filter(None, names))


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
