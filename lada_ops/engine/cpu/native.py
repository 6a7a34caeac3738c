"""Encoders on the CPU: all layers in one call of the native kernels, over packed weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from torch import Tensor, nn

from ...modules.packed_linear import PackedLinear, inference_input, pack_linears, refuse_exporting
from ..find import SupportedEncoder
from ..masks import UnsupportedCall, has_gaps, visible_positions
from ..watch import Watch
from .choice import choose

if TYPE_CHECKING:
    from lada_kernels.cpu.encoder import NormArrays, PackedEncoder, PackedLayer
    from lada_kernels.cpu.packed import PackedWeight


class NativeEngine:
    """Engine of native kernels; positions that the mask hides are not computed and come out as 0.

    copies: the engine holds copies of the encoder's tensors, no views.
    """

    copies = True

    def __init__(self, encoder: PackedEncoder) -> None:
        self.encoder = encoder
        self.watch = Watch({}, None, self.copies)

    def __call__(
        self,
        x: Tensor,
        attention_mask: Tensor | None = None,
        layers: slice = slice(None),
        may_sync: bool = True,
    ) -> Tensor:
        """See `forward.Engine`; raises as `inference_input`, too."""
        refuse_exporting("encoder")
        return self._run(x, attention_mask, layers)

    @torch.compiler.disable(recursive=True)
    def _run(self, x: Tensor, attention_mask: Tensor | None, layers: slice) -> Tensor:
        self.watch.check()
        encoder = self.encoder
        x = inference_input("encoder", x, encoder.features)
        batch, length, features = x.shape
        if encoder.max_length is not None and length > encoder.max_length:
            raise UnsupportedCall  # positions beyond those of the model's config
        visible = None
        if attention_mask is not None:
            visible = visible_positions(attention_mask, batch, length)
        rows = x.reshape(batch * length, features)
        if visible is None or bool(visible.all()):
            starts = torch.arange(batch + 1, device="cpu") * length
            y = encoder.run_(rows.to(encoder.io_dtype, copy=True), starts, layers)
            return y.to(x.dtype).view(batch, length, features)
        if encoder.position_dependent and has_gaps(visible):
            raise UnsupportedCall  # without the gaps, positions would move together
        index = visible.flatten().nonzero()[:, 0]
        starts = nn.functional.pad(visible.sum(1).cumsum(0), (1, 0))
        y = encoder.run_(rows[index].to(encoder.io_dtype), starts, layers)
        return x.new_zeros(rows.shape).index_copy_(0, index, y.to(x.dtype)).view(x.shape)


@dataclass(frozen=True)
class LinearPacker:
    """Packed replacements of linears, and the reason for the weight of each, by name."""

    modules: dict[str, PackedLinear] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def pack(self, sources: Mapping[str, Any], dtype: torch.dtype) -> PackedWeight:
        """Merged weight of linears that share x, one below the other."""
        linears = list(sources.values())
        dense, why = choose(linears, dtype)
        merged = pack_linears(linears, dtype, dense)
        parts = [merged.part(i) for i in range(len(linears))] if len(linears) > 1 else [merged]
        for (name, linear), part in zip(sources.items(), parts, strict=True):
            self.modules[name], self.reasons[name] = PackedLinear(linear, part, dense), why
        return merged


def pack_encoder(
    encoder: SupportedEncoder, dtype: torch.dtype
) -> tuple[NativeEngine, list[LinearPacker]]:
    """Engine of an encoder, and the packed linears of each layer."""
    from lada_kernels.cpu.encoder import PackedEncoder

    packers = [LinearPacker() for _ in encoder.layers]
    positions = getattr(encoder.config, "max_position_embeddings", 0)
    types = encoder.attention_types()
    cpu = torch.device("cpu")
    attention = {  # shared by the layers of a type
        name: {
            "cos_sin": _copied(encoder.rotary_cos_sin(name, positions, cpu)),
            "window": encoder.window(name),
        }
        for name in {*types}
    }
    layers = [
        _pack_layer(encoder, layer, attention[name], dtype, packer)
        for layer, name, packer in zip(encoder.layers, types, packers, strict=True)
    ]
    heads = encoder.config.num_attention_heads
    scale = (layers[0].attention_output.out_features / heads) ** -0.5
    return NativeEngine(PackedEncoder(layers, heads, scale, _bias_by_distance(encoder))), packers


@torch.no_grad()
def _bias_by_distance(encoder: SupportedEncoder) -> np.ndarray | None:
    """Relative position bias for `PackedEncoder`, up to the model's longest sequence."""
    from lada_kernels.cpu.encoder import reach_for

    positions = getattr(encoder.config, "max_position_embeddings", 0)
    bias, reach = encoder.position_bias(positions, torch.device("cpu")), reach_for(positions)
    if bias is None:
        return None
    by_distance = bias.new_zeros(bias.shape[1], 2 * reach)
    by_distance[:, reach : reach + positions] = bias[0, :, 0]
    by_distance[:, reach - positions + 1 : reach] = bias[0, :, 1:, 0].flip(1)
    return _copied(by_distance)


@overload
def _copied(tensor: Tensor) -> np.ndarray: ...
@overload
def _copied(tensor: None) -> None: ...
def _copied(tensor: Tensor | None) -> np.ndarray | None:
    """Contiguous fp32 copy that no torch module holds."""
    return None if tensor is None else tensor.detach().float().clone().contiguous().numpy()


@torch.no_grad()
def _pack_layer(
    encoder: SupportedEncoder,
    layer: nn.Module,
    attention: Mapping[str, Any],
    dtype: torch.dtype,
    packer: LinearPacker,
) -> PackedLayer:
    from lada_kernels.cpu.encoder import PackedLayer

    def linear(*shared: str) -> PackedWeight:
        return packer.pack({name: layer.get_submodule(name) for name in shared}, dtype)

    def norm(name: str | None) -> NormArrays | None:
        module: Any = nn.Identity() if name is None else layer.get_submodule(name)
        if isinstance(module, nn.Identity):
            return None
        bias = torch.zeros_like(module.weight) if module.bias is None else module.bias
        return _copied(module.weight), _copied(bias), module.eps

    names = encoder.names
    attention_norm = norm(names.attention_norm)
    assert attention_norm is not None
    return PackedLayer(
        linear(*names.qkv),
        linear(names.attention_output),
        linear(names.intermediate),
        linear(names.output),
        attention_norm,
        norm(names.output_norm),
        encoder.activation,
        input_norm=norm(names.input_norm),
        gated=names.gated,
        **attention,
    )
