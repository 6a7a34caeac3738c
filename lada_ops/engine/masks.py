"""Attention masks: visible positions, and masks for scaled dot-product attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_MASKED = -1e4  # largest value that counts as -inf in an additive mask; scores are far nearer to 0


class UnsupportedCall(Exception):
    """Raised for a call that the engine cannot compute, though the model's own forward can.

    The usual cause is a mask that differs between queries or heads.
    """


def visible_positions(mask: Any, batch: int, length: int) -> Tensor:
    """Positions that a padding mask leaves visible, (batch, length) bool.

    mask: (batch or 1, 1, length or 1, length), bool, or floats that are added to the scores, each
    0, or at most -1e4; or (batch or 1, length), bool, or 0 and 1.

    Raises UnsupportedCall on any other mask, ValueError on one of another size.
    """
    _check(mask, batch, length)
    visible = mask.bool()
    if mask.ndim == 4:
        if mask.dtype != torch.bool:
            visible = mask == 0
            if not bool((visible | (mask <= _MASKED)).all()):
                raise UnsupportedCall  # biases, as of ALiBi
        first = visible[:, 0, :1]
        if not torch.equal(visible[:, 0], first.expand_as(visible[:, 0])):
            raise UnsupportedCall
        visible = first[:, 0]
    return visible.expand(batch, length)


def has_gaps(visible: Tensor) -> bool:
    """True if a row of ``visible (batch, length)`` hides a position between visible ones."""
    begins = visible[:, 1:] & ~visible[:, :-1]
    return bool((begins.sum(1) + visible[:, 0] > 1).any())


def sdpa_mask(mask: Any, batch: int, length: int, dtype: torch.dtype) -> Tensor:
    """Mask for `torch.nn.functional.scaled_dot_product_attention`, made without a GPU sync.

    Arguments and errors as in `visible_positions`, but the mask may differ between queries. A query
    that sees no key sees all of them instead, since its softmax would be NaN.
    """
    _check(mask, batch, length)
    if mask.ndim == 4 and mask.is_floating_point():
        return mask.to(dtype)
    mask = mask if mask.ndim == 4 else mask.bool()[:, None, None]
    return mask | ~mask.any(-1, keepdim=True)


def add_bias(mask: Tensor | None, bias: Tensor | None) -> Tensor | None:
    """Additive mask: `mask` plus a bias of the scores, either of which may be None."""
    if bias is None or mask is None:
        return mask if bias is None else bias
    return bias.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else bias + mask


def window_mask(window: int, length: int, mask: Tensor | None, device: torch.device) -> Tensor:
    """Mask that also hides keys farther than `window` from their query (sliding window).

    A query that sees no key sees all keys in its window, since its softmax would be NaN.
    """
    at = torch.arange(length, device=device)
    near = (at - at[:, None]).abs() <= window
    if mask is None:
        return near
    if mask.dtype != torch.bool:
        return mask.masked_fill(~near, float("-inf"))
    both = mask & near
    return torch.where(both.any(-1, keepdim=True), both, near)


def _check(mask: Any, batch: int, length: int) -> None:
    if not isinstance(mask, Tensor) or (mask.ndim == 4 and mask.shape[1] != 1):
        raise UnsupportedCall
    if mask.ndim == 4 and mask.dtype != torch.bool and not mask.is_floating_point():
        raise UnsupportedCall  # transformers adds integers or refuses them, by implementation
    fits = mask.ndim == 2 or (mask.ndim == 4 and mask.shape[2] in (1, length))
    if not fits or mask.shape[0] not in (1, batch) or mask.shape[-1] != length:
        raise ValueError(
            f"encoder: attention_mask {tuple(mask.shape)}; expected ({batch}, 1, {length}, "
            f"{length}) or ({batch}, {length})"
        )
