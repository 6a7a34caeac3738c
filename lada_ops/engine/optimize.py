"""`optimize`: a model ready to serve, and the way back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel

from ..modules.checks import check_module
from ..modules.compressed_linear import CompressedLinear
from ..modules.low_rank_ffn import LowRankFFN
from ..ops.epilogue import KERNEL_DTYPES
from .cpu.native import NativeEngine, PackedParts, pack_encoder
from .find import FoundEncoder, find_encoders
from .footprint import MemoryFootprint, ParameterCount
from .forward import EncoderForward, LayerForward, ModelForward
from .gpu.fused import FusedEngine
from .inside import copied_module
from .record import FUSED, Record, optimized_part, record_of
from .watch import Watch

DTYPES = (torch.float32, torch.bfloat16, torch.int8)
"""What encoders on the CPU compute in."""
Model = TypeVar("Model", bound=nn.Module)


def optimize(model: Model, dtype: torch.dtype | None = None) -> Model:
    """Make `model` ready for inference where it is, on the CPU or a GPU, in place; returns it.

    Its encoder, compressed or dense, runs without its padding and with few calls: on the CPU in a
    single native one, on a GPU in four launches a layer where its weights are low rank, or five on
    few tokens, and in eight where they are dense. Of encoders of unknown kinds, and of those that
    compute something else than their class and config say (each layer is tried on a few tokens),
    the compressed linears run one by one; `paths` tells which is which, and why. Outside the model
    looks as before: inputs, outputs, hidden states, attention weights, `state_dict` and
    `save_pretrained`. Where attention weights are asked for, hooks wait inside the layers, or an
    argument comes that the engine does not know, those are computed by their own submodules.

    What comes out at positions that the attention mask hides is 0, or anything: pool with the mask;
    ``last_hidden_state.mean(1)`` of a padded batch changes.

    The model is put in eval mode and frozen: train, load, move, and export it before.
    `lada_ops.restore` undoes all of it. What is changed in the encoder nevertheless is noticed:
    then it runs by its own modules, with a warning; only what torch.compile compiled stays as it
    was. Tracers, exporters and the transforms of torch.func are refused on the CPU. In a process
    that was forked the native kernels use one thread. On the CPU the weights are kept in packed
    form alone; without the native library (see the README) the model is left as it is, with one
    warning. A model that was optimized already is returned as it is.

    dtype: what the encoder computes in. On the CPU float32 or bfloat16; or int8 for its weights,
        with a scale for each output, and for each token's inputs, scaled as they come; then
        attention is in bfloat16 where the CPU multiplies that, and the rest in float32. By default
        float32; of a model in bfloat16 that, where it is fast. Inputs and outputs of the model keep
        their own. On a GPU the model's own.

    Raises TypeError or ValueError, the model unchanged, on a model that is not in one of fp32, fp16
    and bf16, on the CPU or one GPU; on another dtype; where a part was optimized already; and where
    no compressed linear or known encoder is found.
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
    on_cpu, dtype = _checked(model, dtype)
    found = find_encoders(model)
    encoders = [e for e in found.values() if isinstance(e, FoundEncoder)]
    alone = _linears_outside(model, encoders)
    if not encoders and not alone:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in found.items())
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
    for encoder, why in found.items():
        for name in alone:
            if name.startswith(f"{encoder}.") and isinstance(why, str):
                record.how[name] += f"; not the whole encoder: {why}"
    return model


def fuse(model: nn.Module, encoders: Sequence[FoundEncoder], dtype: torch.dtype) -> Record:
    """Have `encoders` in `model` run by fused layers, over our ops, wherever they are."""
    engines = [FusedEngine(encoder) for encoder in encoders]
    record, names = Record(dtype), _names(model)
    for encoder, engine in zip(encoders, engines, strict=True):
        for layer, fused in zip(encoder.layers, engine.layers, strict=True):
            for name, what in fused.how.items():
                record.how[_join(names[layer], name)] = f"fused layer, {_short(dtype)}: {what}"
            record.layers.append(layer)
            layer.add_module(FUSED, fused)
        _take_over(encoder, engine, record)
    _finish(model, record)
    return record


def _pack(
    model: nn.Module,
    encoders: Sequence[FoundEncoder],
    alone: dict[str, CompressedLinear],
    dtype: torch.dtype,
) -> Record:
    """Have `encoders` in `model`, and the linears `alone`, run by the native kernels."""
    packed = PackedParts()
    for name, linear in alone.items():
        packed.pack({name: linear}, dtype)
    engines = [pack_encoder(encoder, dtype) for encoder in encoders]
    record, names = Record(dtype), _names(model)
    for name, why in packed.reasons.items():
        record.how[name] = f"native linear, {_short(dtype)}: {why}"
    modules = dict(packed.modules)
    for encoder, (_, layers) in zip(encoders, engines, strict=True):
        for layer, parts in zip(encoder.layers, layers, strict=True):
            for name, linear in parts.modules.items():
                modules[_join(names[layer], name)] = linear
                how = f"native encoder, {_short(dtype)}: {parts.reasons[name]}"
                record.how[_join(names[layer], name)] = how
    for name, linear in modules.items():  # all of them before the first is set
        source = copied_module(model.get_submodule(name), with_hooks=True)
        record.sources[linear] = source.to("meta")
    record.replace(model, modules)
    for encoder, (engine, _) in zip(encoders, engines, strict=True):
        _take_over(encoder, engine, record)
    _finish(model, record)
    return record


def _take_over(found: FoundEncoder, engine: NativeEngine | FusedEngine, record: Record) -> None:
    """The engine's forward passes, in place of those of the model, its encoder and its layers."""
    forward = EncoderForward(found, engine)
    if found.module is not found.model:  # others compute what their layers need besides x
        record.set(found.module, "forward", forward)
        for i, layer in enumerate(found.layers):
            record.set(layer, "forward", LayerForward(found, i, engine))
    if found.model is not None and "forward" not in vars(found.model):
        record.set(found.model, "forward", ModelForward(found.model, found.kind, forward))
    engine.watch = Watch(found.parts(), found.config, engine.copies, found.model)


def _finish(model: nn.Module, record: Record) -> None:
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            record.set(module, "num_parameters", ParameterCount(module))
            record.set(module, "get_memory_footprint", MemoryFootprint(module))
    record.freeze(model)


def fast_dtypes() -> tuple[torch.dtype, ...]:
    """Those in which `optimize` makes models on the CPU faster here; none without native library.

    The others run everywhere, but on instructions of their own on some CPUs alone.
    """
    from lada_kernels.cpu import native
    from lada_kernels.cpu.instruction_sets import WITH_BF16

    best = native.best()
    if best is None:
        return ()
    return DTYPES if best[0] in WITH_BF16 else DTYPES[:1]


def paths(model: nn.Module) -> dict[str, str]:
    """How each linear that `optimize` looked at is computed, and why."""
    check_module("paths", model)
    found: dict[str, str] = {}
    for prefix, module in model.named_modules():
        record = record_of(module)
        if record is not None:
            found |= {_join(prefix, name): how for name, how in record.how.items()}
        elif isinstance(module, CompressedLinear) and prefix not in found:
            found[prefix] = "alone: not optimized"
    return found


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


def _checked(model: nn.Module, dtype: torch.dtype | None) -> tuple[bool, torch.dtype]:
    """Whether the model is on the CPU, and what its encoder is to compute in."""
    parameters = dict(model.named_parameters())
    first = next(iter(parameters.values()), torch.empty(0, dtype=torch.float32, device="cpu"))
    on_cpu = first.device.type == "cpu"
    allowed = DTYPES if on_cpu else (first.dtype,)
    if dtype is not None and dtype not in allowed:
        raise ValueError(f"optimize: dtype {dtype} on {first.device}; expected one of {allowed}")
    right = KERNEL_DTYPES if on_cpu or first.is_cuda else ()
    for name, tensor in parameters.items():
        alike = (tensor.device, tensor.dtype) == (first.device, first.dtype)
        if not alike or tensor.dtype not in right:
            raise TypeError(
                f"optimize: {name} is {tensor.dtype} on {tensor.device}; expected a model in one "
                f"of {KERNEL_DTYPES} on the CPU or on one GPU"
            )
    if not on_cpu or first.dtype in fast_dtypes():
        return on_cpu, dtype or first.dtype
    return on_cpu, dtype or torch.float32


def _linears_outside(
    model: nn.Module, encoders: Sequence[FoundEncoder]
) -> dict[str, CompressedLinear]:
    """The compressed linears that neither an encoder nor a feed-forward of ours computes with.

    Those whose forward is not ours either are left out.
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
