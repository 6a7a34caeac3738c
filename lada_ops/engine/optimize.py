"""`optimize`: a model ready to serve on the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from ..modules.compressed_linear import CompressedLinear
from ..modules.low_rank_ffn import LowRankFFN
from ..modules.packed_linear import PackedLinear, pack_linears, refuse_loading
from .choice import dense_is_faster
from .forward import EncoderForward, LayerForward, ModelForward
from .layers import FoundEncoder, find_encoders

if TYPE_CHECKING:
    from lada_kernels.cpu import packed
    from lada_kernels.cpu.encoder import PackedEncoder, PackedLayer

DTYPES = (torch.float32, torch.bfloat16, torch.int8)
Model = TypeVar("Model", bound=nn.Module)


def optimize(model: Model, dtype: torch.dtype = torch.float32) -> Model:
    """Make `model` ready for inference on the CPU, in place; returns it.

    Its encoder runs in one native call without padding: compressed and dense linears from packed
    weights, attention, GELU, residual and LayerNorm. Of encoders of unknown kinds, and of those
    that compute something else than their class and config say (each layer is tried on a few
    tokens), the compressed linears run natively one by one; `paths` tells which is which. Outside
    the model looks as before: inputs, outputs, hidden states, attention weights, `state_dict` and
    `save_pretrained`; positions that the attention mask hides come out as 0, unless attention
    weights are asked for or hooks wait inside the layers, which are then computed by their own
    submodules.

    The model is put in eval mode and frozen, and its weights are kept in packed form alone: train
    and load before. Without the native library (see the README) it is left as it is, with one
    warning.

    dtype: what the encoder computes in, float32 or bfloat16; or int8 for its weights, with a scale
        for each output, and for each token's inputs, scaled as they come; then attention is in
        bfloat16 where the CPU multiplies that, and the rest in float32. Inputs and outputs of the
        model keep their own.

    Raises TypeError or ValueError, the model unchanged, on a model that is not in fp32 on the CPU
    or was optimized already, on another dtype, and where no compressed linear or known encoder is
    found.
    """
    from lada_kernels.cpu import native

    if dtype not in DTYPES:
        raise ValueError(f"optimize: dtype {dtype}; expected one of {DTYPES}")
    if any(isinstance(module, PackedLinear) for module in model.modules()):
        raise ValueError("optimize: the model was optimized already; expected the one before that")
    for name, tensor in model.named_parameters():
        if tensor.device.type != "cpu" or tensor.dtype != torch.float32:
            raise TypeError(
                f"optimize: {name} is {tensor.dtype} on {tensor.device}; expected a model in "
                "torch.float32 on the CPU"
            )
    found = find_encoders(model)
    encoders = [e for e in found.values() if isinstance(e, FoundEncoder)]
    inside = {id(m) for e in encoders for layer in e.layers for m in layer.modules()}
    for module in model.modules():
        if isinstance(module, LowRankFFN):  # computes with the tensors of its linears
            inside |= {id(child) for child in module.children()}
    alone = {
        name: module
        for name, module in model.named_modules()
        if name and isinstance(module, CompressedLinear) and id(module) not in inside
    }
    if not encoders and not alone:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in found.items())
        raise ValueError(
            f"optimize: nothing to optimize in {type(model).__name__}; expected an encoder of a "
            "known kind, or compressed linears, within it" + (f" ({reasons})" if reasons else "")
        )
    if native.best() is None:
        return model.eval()
    linears: dict[str, PackedLinear] = {}
    for name, module in alone.items():
        _, (linears[name],) = _packed([module], dtype)
    engines = [_packed_encoder(encoder, dtype) for encoder in encoders]
    for name, linear in linears.items():
        model.set_submodule(name, linear)
    for encoder, engine in zip(encoders, engines, strict=True):
        _take_over(encoder, *engine)
    for module in model.modules():  # also those that would load something before a packed linear
        if any(
            isinstance(inner, PackedLinear) for inner in module.modules() if inner is not module
        ):
            module.register_load_state_dict_pre_hook(refuse_loading)
    return model.eval().requires_grad_(False)


def fast_dtypes() -> tuple[torch.dtype, ...]:
    """Those in which `optimize` makes models faster here; none without the native library.

    The others run everywhere, but on instructions of their own on some CPUs alone.
    """
    from lada_kernels.cpu import native

    best = native.best()
    if best is None:
        return ()
    return DTYPES if best[0] == "avx512bf16" else DTYPES[:1]


def paths(model: nn.Module) -> dict[str, str]:
    """How each linear of the encoders, and each compressed one, is computed on the CPU."""
    found: dict[str, str] = {}
    for name, module in model.named_modules():
        if isinstance(module, PackedLinear):
            found[name] = f"native linear, {_short(module.packed.dtype)}"
        elif isinstance(module, CompressedLinear):
            found[name] = "plain torch: not optimized"
    for name, encoder in find_encoders(model).items():
        forward = vars(model.get_submodule(name)).get("forward")
        if isinstance(forward, EncoderForward):
            how = f"native encoder, {_short(forward.encoder.dtype)}"
            found |= {key: how for key in found if key.startswith(f"{name}.")}
        elif isinstance(encoder, str):
            found |= {
                key: f"{path}; no native encoder: {encoder}"
                for key, path in found.items()
                if key.startswith(f"{name}.")
            }
    return found


Modules: TypeAlias = dict[str, PackedLinear]


def _packed(
    sources: list[Any], dtype: torch.dtype
) -> tuple[packed.PackedLinear, list[PackedLinear]]:
    """The weights of linears that share x, side by side, and a module for each."""
    dense = dense_is_faster(sources, dtype)
    joined = pack_linears(sources, dtype, dense)
    parts = [joined.part(i) for i in range(len(sources))] if len(sources) > 1 else [joined]
    return joined, [PackedLinear(s, p, dense) for s, p in zip(sources, parts, strict=True)]


def _packed_encoder(found: FoundEncoder, dtype: torch.dtype) -> tuple[PackedEncoder, list[Modules]]:
    """What runs the encoder, and by layer what takes the place of each linear."""
    from lada_kernels.cpu.encoder import PackedEncoder

    layers, modules = zip(*(_packed_layer(found, x, dtype) for x in found.layers), strict=True)
    heads = found.config.num_attention_heads
    return PackedEncoder(layers, heads, (layers[0].out.out_features / heads) ** -0.5), list(modules)


def _packed_layer(
    found: FoundEncoder, layer: nn.Module, dtype: torch.dtype
) -> tuple[PackedLayer, Modules]:
    from lada_kernels.cpu.encoder import PackedLayer

    names = found.names
    modules: Modules = {}

    def linear(*together: str) -> packed.PackedLinear:
        joined, parts = _packed([layer.get_submodule(name) for name in together], dtype)
        modules.update(zip(together, parts, strict=True))
        return joined

    def norm(name: str) -> tuple[Tensor, Tensor, float]:
        module = layer.get_submodule(name)
        assert isinstance(module, nn.LayerNorm)
        return module.weight.detach().clone(), module.bias.detach().clone(), module.eps

    packed_layer = PackedLayer(
        linear(*names.qkv),
        linear(names.out),
        linear(names.up),
        linear(names.down),
        norm(names.attention_norm),
        norm(names.output_norm),
        found.activation,
    )
    return packed_layer, modules


def _take_over(found: FoundEncoder, encoder: PackedEncoder, modules: list[Modules]) -> None:
    """Packed linears in place of a layer's own, and native forward passes over them."""
    for i, (layer, linears) in enumerate(zip(found.layers, modules, strict=True)):
        for name, linear in linears.items():
            layer.set_submodule(name, linear)
        layer.forward = LayerForward(layer, found.config, encoder, i)
    forward = EncoderForward(found.module, found.config, found.layers, encoder)
    found.module.forward = forward
    if found.model is not None and "forward" not in vars(found.model):
        found.model.forward = ModelForward(found.model, forward)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
