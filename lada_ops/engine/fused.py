"""Encoders on a GPU: few launches a layer, over joined weights, without the padding."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import Packed, Padded, packs
from .layers import FoundEncoder
from .masks import NotPadding, biased, score_mask, visible_positions
from .parts import Projections, feed_forward_of, keep_dense
from .products import product_of


class FusedLayer(nn.Module):
    """``a = LN(out(attention(q, k, v)) + x); y = LN(down(act(up(a))) + a)`` in a frozen layer.

    Four calls: of the projections q, k and v, of attention, of the one that ends in the first
    LayerNorm, and of the feed-forward.
    """

    def __init__(self, found: FoundEncoder, layer: nn.Module) -> None:
        super().__init__()
        names = found.names

        def part(name: str) -> Any:
            return layer.get_submodule(name)

        self.projections = Projections([part(name) for name in names.qkv])
        self.out = product_of([part(names.out)], "none", part(names.attention_norm))
        self.feed_forward = feed_forward_of(
            part(names.up), part(names.down), found.activation, part(names.output_norm)
        )
        keep_dense(self)
        self.how = dict(zip(names.qkv, self.projections.how, strict=True))
        self.how[names.out] = self.out.how
        self.how |= dict(zip((names.up, names.down), self.feed_forward.how, strict=True))
        """By linear, what computes it."""

    def forward(self, x: Tensor, attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        """x (..., features) -> (..., features)."""
        q, k, v = self.projections(x)
        return self.feed_forward(self.out(attend(q, k, v), residual=x))


class FusedEngine:
    """Runs fused layers one after the other.

    Where a mask hides something the visible tokens are laid end to end, and the others come out as
    0. In a single layer, in what torch.compile compiles or a CUDA graph records, and where
    attention knows no ragged sequences (`attention.packs`, position biases), the padding is
    computed too.
    """

    def __init__(self, found: FoundEncoder) -> None:
        self.layers = [FusedLayer(found, layer) for layer in found.layers]
        self.heads, self.found = found.config.num_attention_heads, found

    def __call__(
        self,
        x: Tensor,
        attention_mask: Tensor | None = None,
        layers: slice = slice(None),
        may_wait: bool = True,
    ) -> Tensor:
        """See `forward.Engine`."""
        run = self.layers[layers]
        batch, length, _ = x.shape
        mask, bias = attention_mask, self.found.position_bias(length, x.device)
        may_wait = may_wait and not torch.compiler.is_compiling()
        may_pack = mask is not None and bias is None and len(run) > 1
        if may_wait and may_pack and packs(x, self.heads):
            with suppress(NotPadding):
                visible = visible_positions(mask, batch, length)
                lengths = visible.sum(1).tolist()  # waits for the GPU
                if sum(lengths) < batch * length:
                    return self._packed(x, visible, lengths, run)
                mask = None
        if mask is not None:
            mask = score_mask(mask, batch, length, x.dtype)
        attend = Padded(self.heads, biased(mask, bias))
        for layer in run:
            x = layer(x, attend)
        return x

    def _packed(
        self, x: Tensor, visible: Tensor, lengths: list[int], run: list[FusedLayer]
    ) -> Tensor:
        lengths = [n for n in lengths if n]
        if not lengths:
            return torch.zeros_like(x)
        index = visible.flatten().nonzero()[:, 0]
        starts = F.pad(torch.tensor(lengths, device=x.device).cumsum(0), (1, 0)).int()
        attend = Packed(self.heads, starts, max(lengths))
        y = x.flatten(0, 1)[index]
        for layer in run:
            y = layer(y, attend)
        whole = y.new_zeros(visible.numel(), x.shape[-1])  # autocast may have changed its dtype
        return whole.index_copy_(0, index, y).view(x.shape)
