"""Attention of a layer over padded batches, or over packed sequences (varlen)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .masks import window_mask

_VARLEN_DTYPES = (torch.float16, torch.bfloat16)
_VARLEN_CAPABILITY = (8, 0)
_VARLEN_HEAD = 256  # largest head; heads are multiples of 8


def apply_rotary(x: Tensor, cos_sin: Tensor) -> Tensor:
    """Rotary position embedding of x (..., head): its halves are real and imaginary parts.

    cos_sin: (..., head), cosines and then sines. "RoFormer", eq. 34.
    """
    (real, imaginary), (cos, sin) = x.chunk(2, -1), cos_sin.chunk(2, -1)
    turned = torch.cat([real * cos - imaginary * sin, imaginary * cos + real * sin], -1)
    return turned.to(x.dtype)


@dataclass(frozen=True, eq=False)
class PaddedAttention:
    """``softmax(q k^T / sqrt(head) + mask) v`` of q, k, v (batch, length, heads * head).

    mask: bool or added to the scores, broadcast to (batch, heads, length, length); None hides
    nothing. cos_sin: (length, head), rotary cos and sin for q and k; None rotates nothing.
    """

    heads: int
    mask: Tensor | None
    cos_sin: Tensor | None = None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        if self.cos_sin is not None:
            q, k = apply_rotary(q, self.cos_sin), apply_rotary(k, self.cos_sin)
        return F.scaled_dot_product_attention(q, k, v, self.mask).transpose(1, 2).flatten(2)


@dataclass(frozen=True, eq=False)
class VarlenAttention:
    """`PaddedAttention` of packed sequences: q, k, v (tokens, heads * head).

    starts: (sequences + 1,) int32, the first token of each sequence, then the number of tokens.
    longest: length of the longest sequence. cos_sin: (tokens, head), or None.
    window: largest distance between a query and a visible key; None has no limit.
    """

    heads: int
    starts: Tensor
    longest: int
    cos_sin: Tensor | None = None
    window: int | None = None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.heads, -1)) for t in (q, k, v))
        if self.cos_sin is not None:
            q, k = (apply_rotary(t, self.cos_sin[:, None]) for t in (q, k))
        if q.is_cuda:
            from torch.nn.attention.varlen import varlen_attn  # slow to import

            sizes = self.starts, self.starts, self.longest, self.longest
            window = -1 if self.window is None else self.window
            attended = varlen_attn(q, k, v, *sizes, window_size=(window, window))
            assert isinstance(attended, Tensor)
            return attended.flatten(1)
        out = torch.empty_like(q)
        starts = self.starts.tolist()
        for first, end in zip(starts, starts[1:], strict=False):
            mask = None
            if self.window is not None:
                mask = window_mask(self.window, end - first, None, q.device)
            own_q, own_k, own_v = (t[first:end].transpose(0, 1) for t in (q, k, v))
            attended = F.scaled_dot_product_attention(own_q, own_k, own_v, mask)
            out[first:end] = attended.transpose(0, 1)
        return out.flatten(1)


def supports_varlen(x: Tensor, heads: int) -> bool:
    """True if `VarlenAttention` can compute x (..., heads * head) on x's device."""
    if not x.is_cuda:
        return True
    head = x.shape[-1] // heads
    return (
        x.dtype in _VARLEN_DTYPES
        and head % 8 == 0
        and head <= _VARLEN_HEAD
        and torch.cuda.get_device_capability(x.device) >= _VARLEN_CAPABILITY
    )
