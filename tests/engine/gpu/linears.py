"""Small fp64 linears of every format, norms and inputs for them."""

import torch
from torch import nn

from lada_ops import BlockSparseLinear, LowRankLinear, SparseLowRankLinear

BLOCK = (8, 4)
FORMATS = {
    "dense": lambda out=24, **more: nn.Linear(16, out, **more),
    "low rank": lambda out=24, rank=5, **more: LowRankLinear(16, out, rank, **more),
    "block sparse": lambda out=24, block=BLOCK, **more: BlockSparseLinear(
        16, out, block, 0.4, **more
    ),
    "sparse + low rank": lambda out=24, rank=3, **more: SparseLowRankLinear(
        16, out, rank, BLOCK, 0.3, **more
    ),
}


def make(format, *args, **kwargs):
    linear = FORMATS[format](*args, **kwargs, dtype=torch.float64)
    if linear.bias is not None:
        nn.init.normal_(linear.bias)
    if format == "sparse + low rank":
        nn.init.normal_(linear.values)
    return linear


def norm_of(features):
    norm = nn.LayerNorm(features, eps=1e-3, dtype=torch.float64)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


def x_of(*shape):
    return torch.randn(*shape, 16, dtype=torch.float64)
