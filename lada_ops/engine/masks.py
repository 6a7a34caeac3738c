"""What an attention mask hides: padding, as a rule."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_MASKED = -1e4  # what a mask adds to hide a key; scores are far nearer to 0


class NotForEngine(Exception):
    """A call that the engine cannot compute, though the model's own forward can.

    As a rule since its mask is more than a choice of positions that all queries and heads share.
    """


def visible_positions(mask: Any, batch: int, length: int) -> Tensor:
    """Which positions a mask lets all others see, (batch, length) bool.

    mask: (batch or 1, 1, length or 1, length), bool, or floats that are added to the scores, each
    0, or -1e4 and less; or (batch or 1, length), bool, or 0 and 1.

    Raises NotForEngine on a mask of another kind, ValueError on one of another size.
    """
    _check(mask, batch, length)
    whole = mask.bool()
    if mask.ndim == 4:
        if mask.dtype != torch.bool:
            whole = mask == 0
            if not bool((whole | (mask <= _MASKED)).all()):
                raise NotForEngine  # biases, as of ALiBi
        first = whole[:, 0, :1]
        if not torch.equal(whole[:, 0], first.expand_as(whole[:, 0])):
            raise NotForEngine
        whole = first[:, 0]
    return whole.expand(batch, length)


def in_one_piece(visible: Tensor) -> bool:
    """Whether no row of ``visible (batch, length)`` has a gap between its visible positions."""
    begins = visible[:, 1:] & ~visible[:, :-1]
    return bool((begins.sum(1) + visible[:, 0] <= 1).all())


def score_mask(mask: Any, batch: int, length: int, dtype: torch.dtype) -> Tensor:
    """A mask as `torch.nn.functional.scaled_dot_product_attention` wants it, without waiting for
    the GPU; arguments and errors as of `visible_positions`, but queries may see different things.

    A query from which everything is hidden sees everything, rather than becoming NaN.
    """
    _check(mask, batch, length)
    if mask.ndim == 4 and mask.is_floating_point():
        return mask.to(dtype)
    mask = mask if mask.ndim == 4 else mask.bool()[:, None, None]
    return mask | ~mask.any(-1, keepdim=True)


def biased(mask: Tensor | None, bias: Tensor | None) -> Tensor | None:
    """A score mask with a bias added to the scores, both broadcast to them."""
    if bias is None or mask is None:
        return mask if bias is None else bias
    return bias.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else bias + mask


def in_window(window: int, length: int, mask: Tensor | None, device: torch.device) -> Tensor:
    """A score mask that hides, too, keys farther than `window` from their query.

    A query from which everything is hidden sees what is in its window, rather than becoming NaN.
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
        raise NotForEngine
    if mask.ndim == 4 and mask.dtype != torch.bool and not mask.is_floating_point():
        raise NotForEngine  # transformers adds whole numbers or refuses them, as attention does
    fits = mask.ndim == 2 or (mask.ndim == 4 and mask.shape[2] in (1, length))
    if not fits or mask.shape[0] not in (1, batch) or mask.shape[-1] != length:
        raise ValueError(
            f"encoder: attention_mask {tuple(mask.shape)}; expected ({batch}, 1, {length}, "
            f"{length}) or ({batch}, {length})"
        )
