"""Attention of a layer over sequences of one length, or over ragged ones laid end to end."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from .masks import in_window

_VARLEN_DTYPES = (torch.float16, torch.bfloat16)
_VARLEN_CAPABILITY = (8, 0)
_VARLEN_HEAD = 256  # and a multiple of 8


def rotated(x: Tensor, angles: Tensor) -> Tensor:
    """x (..., features), its halves the real and imaginary parts of what is turned by `angles`.

    angles: (..., features), cosines and then sines. The rotary positions of "RoFormer", eq. 34.
    """
    (real, imaginary), (cos, sin) = x.chunk(2, -1), angles.chunk(2, -1)
    turned = torch.cat([real * cos - imaginary * sin, imaginary * cos + real * sin], -1)
    return turned.to(x.dtype)


@dataclass(frozen=True, eq=False)
class Padded:
    """``softmax(q k^T / sqrt(head) + mask) v`` of q, k, v (batch, length, heads * head).

    mask: bool or added to the scores, broadcast to (batch, heads, length, length); None hides
    nothing. angles: (length, head), what q and k are `rotated` by, if anything.
    """

    heads: int
    mask: Tensor | None
    angles: Tensor | None = None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        if self.angles is not None:
            q, k = rotated(q, self.angles), rotated(k, self.angles)
        return F.scaled_dot_product_attention(q, k, v, self.mask).transpose(1, 2).flatten(2)


@dataclass(frozen=True, eq=False)
class Packed:
    """The same of q, k, v (tokens, heads * head), each sequence for itself.

    starts: (sequences + 1,) int32, where each begins, and the number of tokens. longest: of them.
    angles: (tokens, head). window: how far from a query the keys are that it sees; None is any.
    """

    heads: int
    starts: Tensor
    longest: int
    angles: Tensor | None = None
    window: int | None = None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.heads, -1)) for t in (q, k, v))
        if self.angles is not None:
            q, k = (rotated(t, self.angles[:, None]) for t in (q, k))
        if q.is_cuda:
            both = self.starts, self.starts, self.longest, self.longest
            reach = -1 if self.window is None else self.window
            attended = varlen_attn(q, k, v, *both, window_size=(reach, reach))
            assert isinstance(attended, Tensor)
            return attended.flatten(1)
        out = torch.empty_like(q)
        starts = self.starts.tolist()
        for first, end in zip(starts, starts[1:], strict=False):
            near = None
            if self.window is not None:
                near = in_window(self.window, end - first, None, q.device)
            own_q, own_k, own_v = (t[first:end].transpose(0, 1) for t in (q, k, v))
            attended = F.scaled_dot_product_attention(own_q, own_k, own_v, near)
            out[first:end] = attended.transpose(0, 1)
        return out.flatten(1)


def packs(x: Tensor, heads: int) -> bool:
    """Whether `Packed` can take the tokens of x (..., heads * head)."""
    if not x.is_cuda:
        return True
    head = x.shape[-1] // heads
    return (
        x.dtype in _VARLEN_DTYPES
        and head % 8 == 0
        and head <= _VARLEN_HEAD
        and torch.cuda.get_device_capability(x.device) >= _VARLEN_CAPABILITY
    )
