"""Weights of every format, and their fp64 oracle with the roundings of a packed dtype."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lada_kernels.cpu.packing import Weight

# Relative to outputs of unit size. fp32: sums in another order. bf16: roundings of x v^T and of the
# output. int8: a value halfway between two integers may be rounded to either.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 3e-2, torch.int8: 2e-2}


@dataclass(frozen=True)
class WeightCase:
    """Weight and the dtype that it is packed in."""

    weight: Weight
    dtype: torch.dtype

    def oracle(self, x: Tensor) -> Tensor:
        """x W^T in fp64, of weights and x as rounded to the packed dtype."""
        u, v, sparse = (
            self._rounded(t) for t in (self.weight.u, self.weight.v, self.weight.sparse)
        )
        x = quantized(x) if self.dtype == torch.int8 else x
        y = torch.zeros(len(x), self.weight.out_features, dtype=torch.float64)
        if sparse is not None:
            y += x.double() @ sparse.double().T
        if u is not None and v is not None:
            t = x.double() @ v.double().T
            t = quantized(t.float()) if self.dtype == torch.int8 else t.to(x.dtype)
            y += t.double() @ u.double().T
        return y

    def _rounded(self, t: Tensor | None) -> Tensor | None:
        if t is None:
            return None
        return quantized(t) if self.dtype == torch.int8 else t.to(self.dtype)


def quantized(t: Tensor) -> Tensor:
    """`t`, fp32, as rounded to int8 with a scale per row."""
    scale = t.abs().amax(1, keepdim=True) / 127
    return torch.where(scale > 0, (t / torch.where(scale > 0, scale, 1)).round() * scale, t)


def weight_case(n, k, dtype, rank=0, block=None, density=0.4, mask=None) -> WeightCase:
    """Weight (n, k): low rank, block sparse or both; dense without either."""
    u = v = sparse = None
    scale = max(k, 1) ** -0.5
    if rank:
        u, v = torch.randn(n, rank) * rank**-0.5, torch.randn(rank, k) * scale
    if block:
        if mask is None:
            mask = torch.rand(n // block[0], k // block[1]) < density
        elements = mask.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
        sparse = torch.randn(n, k) * scale * elements
    elif not rank:
        sparse = torch.randn(n, k) * scale
    return WeightCase(Weight(n, k, u, v, sparse, mask), dtype)


def io_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype == torch.int8 else dtype


def assert_near(y: Tensor, want: Tensor, dtype: torch.dtype) -> None:
    bound = TOLERANCE[dtype]
    torch.testing.assert_close(y.double(), want, rtol=bound, atol=bound)
