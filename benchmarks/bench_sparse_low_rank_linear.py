"""`sparse_low_rank_linear` beside the dense product and separate ops for its two parts."""

import torch.nn.functional as F

from benchmarks.shapes import LinearCase, linear_candidates, torch_bsr
from lada_ops import SparseLowRank, block_sparse_linear, low_rank_linear, sparse_low_rank_linear


def two_ops(x, u, v, crow_indices, col_indices, values, bias):
    return low_rank_linear(x, u, v) + block_sparse_linear(
        x, crow_indices, col_indices, values, bias
    )


def plain_torch(x, u, v, bsr, bias):
    return F.linear(F.linear(x, v), u) + F.linear(x, bsr, bias)


def test_sparse_low_rank_linear(linear_case: LinearCase, report_linear):
    weight = linear_case.weight("sparse_low_rank")
    assert isinstance(weight, SparseLowRank)
    factors, bsr = (weight.low_rank.u, weight.low_rank.v), weight.bsr
    parts = (*factors, bsr.crow_indices, bsr.col_indices, bsr.values)
    ops = {
        "dense": (F.linear, [weight.to_dense()]),
        "sparse_low_rank_linear": (sparse_low_rank_linear, parts),
        "two ops": (two_ops, parts),
        "two F.linear + torch.sparse_bsr": (plain_torch, (*factors, torch_bsr(bsr))),
    }
    candidates = linear_candidates(linear_case, weight, ops)
    report_linear(str(linear_case), candidates, "sparse_low_rank_linear")
