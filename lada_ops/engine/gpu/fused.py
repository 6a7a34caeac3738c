"""Encoders on a GPU: few launches a layer, over joined weights, without the padding."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.jit._trace import is_tracing

from ...modules.packed_linear import refuse
from ..attention import Packed, Padded, packs
from ..find import FoundEncoder
from ..masks import NotForEngine, biased, in_one_piece, in_window, score_mask, visible_positions
from ..watch import Watch
from .merged_linear import product_of
from .parts import HeldNorm, Projections, feed_forward_of, keep_dense


class FusedLayer(nn.Module):
    """``a = LN(out(attention(q, k, v)) + x); y = LN(down(act(up(a))) + a)`` in a frozen layer; or,
    where norms come first, ``a = out(attention(q, k, v)) + x; y = down(act(up(LN(a)))) + a``.

    Four calls: of the projections q, k and v, of attention, of the one that ends in the first
    LayerNorm, and of the feed-forward; and of norms that come first.
    """

    def __init__(self, found: FoundEncoder, layer: nn.Module) -> None:
        super().__init__()
        names = found.names

        def part(name: str | None) -> Any:
            return None if name is None else layer.get_submodule(name)

        def held(name: str | None) -> nn.Module:
            norm = part(name)
            return HeldNorm(norm) if isinstance(norm, nn.LayerNorm) else nn.Identity()

        first = names.output_norm is None
        self.input_norm = held(names.input_norm)
        self.projections = Projections([part(name) for name in names.qkv])
        after_out = None if first else part(names.attention_norm)
        self.out = product_of([part(names.out)], "none", after_out)
        self.hidden_norm = held(names.attention_norm if first else None)
        self.feed_forward = feed_forward_of(
            part(names.up), part(names.down), found.activation, part(names.output_norm), names.gated
        )
        keep_dense(self)
        self.how = dict(zip(names.qkv, self.projections.how, strict=True))
        self.how[names.out] = self.out.how
        self.how |= dict(zip((names.up, names.down), self.feed_forward.how, strict=True))
        """By linear, what computes it."""

    def forward(self, x: Tensor, attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        """x (..., features) -> (..., features)."""
        projected = self.projections(self.input_norm(x))
        q, k, v = projected if len(projected) > 1 else projected[0].chunk(3, -1)
        x = self.out(attend(q, k, v), residual=x)
        return self.feed_forward(self.hidden_norm(x), residual=x)


class FusedEngine:
    """Runs fused layers one after the other.

    Where a mask hides something the visible tokens are laid end to end, and the others come out as
    0. In a single layer, in what torch.compile compiles or a CUDA graph records, and where
    attention knows no ragged sequences (`attention.packs`, position biases, windows over gaps), the
    padding is computed too.
    """

    copies = False
    """Whether it holds copies of the encoder's tensors: it has views."""

    def __init__(self, found: FoundEncoder) -> None:
        self.layers = [FusedLayer(found, layer) for layer in found.layers]
        self.heads, self.found = found.config.num_attention_heads, found
        self.watch = Watch({}, None, self.copies)

    def __call__(
        self,
        x: Tensor,
        attention_mask: Tensor | None = None,
        layers: slice = slice(None),
        may_wait: bool = True,
    ) -> Tensor:
        """See `forward.Engine`."""
        if is_tracing():  # lengths of sequences would become constants
            refuse("encoder", "torch.jit.trace")
        if not torch.compiler.is_compiling():
            self.watch.check()
        run = [*zip(self.layers, self.found.attention_types(), strict=True)][layers]
        batch, length, _ = x.shape
        mask, bias = attention_mask, self.found.position_bias(length, x.device)
        may_wait = may_wait and not torch.compiler.is_compiling()
        may_pack = mask is not None and bias is None and len(run) > 1
        if may_wait and may_pack and packs(x, self.heads):
            with suppress(NotForEngine):
                visible = visible_positions(mask, batch, length)
                lengths = visible.sum(1).tolist()  # waits for the GPU
                if sum(lengths) < batch * length:
                    return self._packed(x, visible, lengths, run)
                mask = None
        if mask is not None:
            mask = score_mask(mask, batch, length, x.dtype)
        mask = biased(mask, bias)
        attend = {}
        for name in {name for _, name in run}:
            window = self.found.window(name)
            own = mask if window is None else in_window(window, length, mask, x.device)
            attend[name] = Padded(self.heads, own, self.found.angles(name, length, x.device))
        for layer, name in run:
            x = layer(x, attend[name])
        return x

    def _packed(
        self, x: Tensor, visible: Tensor, lengths: list[int], run: list[tuple[FusedLayer, str]]
    ) -> Tensor:
        windows = {name: self.found.window(name) for _, name in run}
        if {*windows.values()} != {None} and not in_one_piece(visible):
            raise NotForEngine  # what is apart would move into the window
        lengths = [n for n in lengths if n]
        if not lengths:
            return torch.zeros_like(x)
        index = visible.flatten().nonzero()[:, 0]
        sizes = torch.tensor(lengths, dtype=torch.long, device=x.device)
        starts = F.pad(sizes.cumsum(0), (1, 0)).int()
        attend = {}
        for name, window in windows.items():
            angles = self.found.angles(name, x.shape[1], x.device)
            angles = None if angles is None else angles[index % x.shape[1]]
            attend[name] = Packed(self.heads, starts, max(lengths), angles, window)
        y = x.flatten(0, 1)[index]
        for layer, name in run:
            y = layer(y, attend[name])
        whole = y.new_zeros(visible.numel(), x.shape[-1])  # autocast may have changed its dtype
        return whole.index_copy_(0, index, y).view(x.shape)
