"""Rates that a timed implementation achieved, and its share of the device's roofline.

Work counts two operations per stored weight element and token, each operand read and the output
written once. Intermediates in memory and padding are no work: they show as a lower share.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.sparse import SparseSemiStructuredTensor

from lada_ops.machine_code.roofline import Ceilings, Work


def achieved(work: Work, seconds: float, ceilings: Ceilings | None) -> dict[str, float | None]:
    """TFLOP/s, GB/s and the share of the roofline; the share is None without ceilings."""
    return {
        "tflops": work.flops / seconds / 1e12,
        "gigabytes_per_second": work.bytes / seconds / 1e9,
        "roofline_fraction": None if ceilings is None else work.seconds(ceilings) / seconds,
    }


def stored_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of `tensors`, a sparse one counted by its parts."""
    return sum(part.numel() * part.element_size() for t in tensors for part in _parts(t))


def _parts(tensor: Tensor) -> list[Tensor]:
    if tensor.layout == torch.sparse_bsr:
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    if isinstance(tensor, SparseSemiStructuredTensor):
        return [t for t in (tensor.packed, tensor.meta) if t is not None]
    return [tensor]
