"""Encoders on the CPU: all layers in one call of the native kernels, over packed weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from torch import Tensor, nn

from ...modules.packed_linear import PackedLinear, inference_input, pack_linears, refuse_exporting
from ..find import FoundEncoder
from ..masks import NotForEngine, in_one_piece, visible_positions
from ..watch import Watch
from .choice import choose

if TYPE_CHECKING:
    from lada_kernels.cpu.encoder import NormArrays, PackedEncoder, PackedLayer
    from lada_kernels.cpu.packed import PackedWeight


class NativeEngine:
    """Positions that the mask hides are not computed; they come out as 0."""

    copies = True
    """Whether it holds copies of the encoder's tensors: it has its own tensors, no views."""

    def __init__(self, encoder: PackedEncoder) -> None:
        self.encoder = encoder
        self.watch = Watch({}, None, self.copies)

    def __call__(
        self,
        x: Tensor,
        attention_mask: Tensor | None = None,
        layers: slice = slice(None),
        may_wait: bool = True,
    ) -> Tensor:
        """See `forward.Engine`; raises where `inference_input` does, too."""
        refuse_exporting("encoder")
        return self._run(x, attention_mask, layers)

    @torch.compiler.disable(recursive=True)
    def _run(self, x: Tensor, attention_mask: Tensor | None, layers: slice) -> Tensor:
        self.watch.check()
        encoder = self.encoder
        x = inference_input("encoder", x, encoder.features)
        batch, length, features = x.shape
        if encoder.max_length is not None and length > encoder.max_length:
            raise NotForEngine  # positions beyond those of the model's config
        visible = None
        if attention_mask is not None:
            visible = visible_positions(attention_mask, batch, length)
        rows = x.reshape(batch * length, features)
        if visible is None or bool(visible.all()):
            starts = torch.arange(batch + 1, device="cpu") * length
            y = encoder.run_(rows.to(encoder.io_dtype, copy=True), starts, layers)
            return y.to(x.dtype).view(batch, length, features)
        if encoder.position_dependent and not in_one_piece(visible):
            raise NotForEngine  # positions would move together
        index = visible.flatten().nonzero()[:, 0]
        starts = nn.functional.pad(visible.sum(1).cumsum(0), (1, 0))
        y = encoder.run_(rows[index].to(encoder.io_dtype), starts, layers)
        return x.new_zeros(rows.shape).index_copy_(0, index, y.to(x.dtype)).view(x.shape)


@dataclass(frozen=True)
class PackedParts:
    """What takes the place of linears, by name, and why each is packed as it is."""

    modules: dict[str, PackedLinear] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def pack(self, sources: Mapping[str, Any], dtype: torch.dtype) -> PackedWeight:
        """The weights of linears that share x, side by side."""
        linears = list(sources.values())
        dense, why = choose(linears, dtype)
        joined = pack_linears(linears, dtype, dense)
        parts = [joined.part(i) for i in range(len(linears))] if len(linears) > 1 else [joined]
        for (name, linear), part in zip(sources.items(), parts, strict=True):
            self.modules[name], self.reasons[name] = PackedLinear(linear, part, dense), why
        return joined


def pack_encoder(found: FoundEncoder, dtype: torch.dtype) -> tuple[NativeEngine, list[PackedParts]]:
    """What runs the encoder, and what takes the place of the linears of each layer."""
    from lada_kernels.cpu.encoder import PackedEncoder

    linears = [PackedParts() for _ in found.layers]
    positions = getattr(found.config, "max_position_embeddings", 0)
    types = found.attention_types()
    cpu = torch.device("cpu")
    attention = {  # which layers of a type share
        name: {"cos_sin": _copied(found.angles(name, positions, cpu)), "window": found.window(name)}
        for name in {*types}
    }
    layers = [
        _packed_layer(found, layer, attention[name], dtype, into)
        for layer, name, into in zip(found.layers, types, linears, strict=True)
    ]
    heads = found.config.num_attention_heads
    scale = (layers[0].attention_output.out_features / heads) ** -0.5
    bias = _bias_by_distance(found)
    return NativeEngine(PackedEncoder(layers, heads, scale, bias)), linears


@torch.no_grad()
def _bias_by_distance(found: FoundEncoder) -> np.ndarray | None:
    """What `PackedEncoder` adds to scores, for sequences as long as the model can have them."""
    from lada_kernels.cpu.encoder import reach_for

    positions = getattr(found.config, "max_position_embeddings", 0)
    bias, reach = found.position_bias(positions, torch.device("cpu")), reach_for(positions)
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
    """A copy in fp32, contiguous, that no torch module holds."""
    return None if tensor is None else tensor.detach().float().clone().contiguous().numpy()


@torch.no_grad()
def _packed_layer(
    found: FoundEncoder,
    layer: nn.Module,
    attention: Mapping[str, Any],
    dtype: torch.dtype,
    into: PackedParts,
) -> PackedLayer:
    from lada_kernels.cpu.encoder import PackedLayer

    def linear(*together: str) -> PackedWeight:
        return into.pack({name: layer.get_submodule(name) for name in together}, dtype)

    def norm(name: str | None) -> NormArrays | None:
        module: Any = nn.Identity() if name is None else layer.get_submodule(name)
        if isinstance(module, nn.Identity):
            return None
        bias = torch.zeros_like(module.weight) if module.bias is None else module.bias
        return _copied(module.weight), _copied(bias), module.eps

    names = found.names
    after_attention = norm(names.attention_norm)
    assert after_attention is not None
    return PackedLayer(
        linear(*names.qkv),
        linear(names.out),
        linear(names.up),
        linear(names.down),
        after_attention,
        norm(names.output_norm),
        found.activation,
        input_norm=norm(names.input_norm),
        gated=names.gated,
        **attention,
    )
