"""Costs of a weight in each usual unit: parameters, non-zeros, bytes and FLOPs."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class Counts:
    """Costs of storing and applying a weight; ``+`` adds them up.

    parameters: stored floating-point values, explicit zeros included.
    nonzeros: stored values that are not zero, as papers on pruning count.
    masked_bytes: the non-zeros at their own width, plus one bit per element of each stored matrix
        that has zeros: the size of an ideal unstructured encoding.
    stored_bytes: bytes of all stored tensors, values and indices, as in the file.
    flops_per_token: multiplications and additions to apply the weight to one token.
    """

    parameters: int = 0
    nonzeros: int = 0
    masked_bytes: int = 0
    stored_bytes: int = 0
    flops_per_token: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @classmethod
    def of(cls, values: Tensor, flops_per_value: int = 2) -> Counts:
        """Counts of a dense tensor."""
        nonzeros = int(torch.count_nonzero(values))
        mask = 0 if nonzeros == values.numel() else (values.numel() + 7) // 8
        return cls(
            parameters=values.numel(),
            nonzeros=nonzeros,
            masked_bytes=nonzeros * values.element_size() + mask,
            stored_bytes=values.numel() * values.element_size(),
            flops_per_token=flops_per_value * values.numel(),
        )
