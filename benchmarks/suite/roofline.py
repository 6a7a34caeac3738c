"""What a way must compute and move at least, and how near to the device's ceilings it comes.

Work is what the way's own weights ask for: two operations per stored weight element and token, and
every operand read and the output written once. An intermediate that is written and read again, or
padding that is multiplied, is no work; it shows as a lower fraction.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.sparse import SparseSemiStructuredTensor


@dataclass(frozen=True)
class Work:
    flops: int
    bytes: int


@dataclass(frozen=True)
class Ceilings:
    """What this very device was measured to do."""

    flops_per_second: float
    bytes_per_second: float

    def seconds(self, work: Work) -> float:
        """The least time for `work`: of arithmetic or of traffic, whichever takes longer."""
        return max(work.flops / self.flops_per_second, work.bytes / self.bytes_per_second)


def achieved(work: Work, seconds: float, ceilings: Ceilings | None) -> dict[str, float | None]:
    return {
        "tflops": work.flops / seconds / 1e12,
        "gigabytes_per_second": work.bytes / seconds / 1e9,
        "roofline_fraction": None if ceilings is None else ceilings.seconds(work) / seconds,
    }


def size(tensors: Iterable[Tensor]) -> int:
    """The bytes that `tensors` occupy; of a sparse one, those of its parts."""
    return sum(part.numel() * part.element_size() for t in tensors for part in _parts(t))


def _parts(tensor: Tensor) -> list[Tensor]:
    if tensor.layout == torch.sparse_bsr:
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    if isinstance(tensor, SparseSemiStructuredTensor):
        return [t for t in (tensor.packed, tensor.meta) if t is not None]
    return [tensor]
