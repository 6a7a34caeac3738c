"""Encoders on a GPU: few launches per layer, over merged weights, without padding."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.jit._trace import is_tracing

from ...modules.packed_linear import refuse
from ..attention import PaddedAttention, VarlenAttention, supports_varlen
from ..find import SupportedEncoder
from ..masks import (
    UnsupportedCall,
    add_bias,
    has_gaps,
    sdpa_mask,
    visible_positions,
    window_mask,
)
from ..watch import Watch
from .merged_linear import merge
from .parts import FrozenLayerNorm, Projections, feed_forward_of, keep_dense


class FusedLayer(nn.Module):
    """Frozen encoder layer in few calls; its formula is that of `layer_ref`.

    Four calls, each with its epilogue: the query, key and value projections, attention, its output
    projection, and the feed-forward. Pre-norm layers call their two norms as well.

    how: the weight of each linear, and how it is merged, by the linear's name.
    """

    def __init__(self, encoder: SupportedEncoder, layer: nn.Module) -> None:
        super().__init__()
        names = encoder.names

        def part(name: str | None) -> Any:
            return None if name is None else layer.get_submodule(name)

        def frozen(name: str | None) -> nn.Module:
            norm = part(name)
            return FrozenLayerNorm(norm) if isinstance(norm, nn.LayerNorm) else nn.Identity()

        pre_norm = names.output_norm is None
        self.input_norm = frozen(names.input_norm)
        self.projections = Projections([part(name) for name in names.qkv])
        attention_norm = None if pre_norm else part(names.attention_norm)
        self.attention_output = merge([part(names.attention_output)], "none", attention_norm)
        self.intermediate_norm = frozen(names.attention_norm if pre_norm else None)
        self.feed_forward = feed_forward_of(
            part(names.intermediate),
            part(names.output),
            encoder.activation,
            part(names.output_norm),
            names.gated,
        )
        keep_dense(self)
        hows = *self.projections.how, self.attention_output.how, *self.feed_forward.how
        self.how = dict(zip(names.linears, hows, strict=True))

    def forward(self, x: Tensor, attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        """x (..., features) -> (..., features)."""
        projected = self.projections(self.input_norm(x))
        q, k, v = projected if len(projected) > 1 else projected[0].chunk(3, -1)
        x = self.attention_output(attend(q, k, v), residual=x)
        return self.feed_forward(self.intermediate_norm(x), residual=x)


class FusedEngine:
    """Engine of fused layers.

    Where a mask hides tokens, the visible ones are packed into one sequence after the other
    (`VarlenAttention`), and the hidden ones come out as 0. Padding is computed as well in a single
    layer, under torch.compile, while a CUDA graph is recorded, and where varlen attention does not
    apply (`supports_varlen`, relative position bias, gaps under a sliding window).

    copies: False, since the engine holds views of the encoder's tensors.
    """

    copies = False

    def __init__(self, encoder: SupportedEncoder) -> None:
        self.layers = [FusedLayer(encoder, layer) for layer in encoder.layers]
        self.heads, self.encoder = encoder.config.num_attention_heads, encoder
        self.watch = Watch({}, None, self.copies)

    def __call__(
        self,
        x: Tensor,
        attention_mask: Tensor | None = None,
        layers: slice = slice(None),
        may_sync: bool = True,
    ) -> Tensor:
        """See `forward.Engine`."""
        if is_tracing():  # the lengths of sequences would become constants
            refuse("encoder", "torch.jit.trace")
        if not torch.compiler.is_compiling():
            self.watch.check()
        run = [*zip(self.layers, self.encoder.attention_types(), strict=True)][layers]
        batch, length, _ = x.shape
        mask, bias = attention_mask, self.encoder.position_bias(length, x.device)
        may_sync = may_sync and not torch.compiler.is_compiling()
        may_pack = mask is not None and bias is None and len(run) > 1
        if may_sync and may_pack and supports_varlen(x, self.heads):
            with suppress(UnsupportedCall):
                visible = visible_positions(mask, batch, length)
                lengths = visible.sum(1).tolist()  # GPU sync
                if sum(lengths) < batch * length:
                    return self._packed(x, visible, lengths, run)
                mask = None
        if mask is not None:
            mask = sdpa_mask(mask, batch, length, x.dtype)
        mask = add_bias(mask, bias)
        attend = {}
        for name in {name for _, name in run}:
            window = self.encoder.window(name)
            own = mask if window is None else window_mask(window, length, mask, x.device)
            cos_sin = self.encoder.rotary_cos_sin(name, length, x.device)
            attend[name] = PaddedAttention(self.heads, own, cos_sin)
        for layer, name in run:
            x = layer(x, attend[name])
        return x

    def _packed(
        self, x: Tensor, visible: Tensor, lengths: list[int], run: list[tuple[FusedLayer, str]]
    ) -> Tensor:
        """Output for the visible tokens of x alone, 0 elsewhere."""
        windows = {name: self.encoder.window(name) for _, name in run}
        if {*windows.values()} != {None} and has_gaps(visible):
            raise UnsupportedCall  # packing would move distant tokens into the window
        lengths = [n for n in lengths if n]
        if not lengths:
            return torch.zeros_like(x)
        index = visible.flatten().nonzero()[:, 0]
        sizes = torch.tensor(lengths, dtype=torch.long, device=x.device)
        starts = F.pad(sizes.cumsum(0), (1, 0)).int()
        attend = {}
        for name, window in windows.items():
            cos_sin = self.encoder.rotary_cos_sin(name, x.shape[1], x.device)
            cos_sin = None if cos_sin is None else cos_sin[index % x.shape[1]]
            attend[name] = VarlenAttention(self.heads, starts, max(lengths), cos_sin, window)
        y = x.flatten(0, 1)[index]
        for layer, name in run:
            y = layer(y, attend[name])
        whole = y.new_zeros(visible.numel(), x.shape[-1])  # autocast may have changed y's dtype
        return whole.index_copy_(0, index, y).view(x.shape)
