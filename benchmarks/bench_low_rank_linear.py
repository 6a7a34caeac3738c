"""`low_rank_linear` beside the dense product and two plain products."""

import torch.nn.functional as F

from benchmarks.shapes import LinearCase, linear_candidates
from lada_ops import LowRank, low_rank_linear


def two_linears(x, u, v, bias):
    return F.linear(F.linear(x, v), u, bias)


def test_low_rank_linear(linear_case: LinearCase, report_linear):
    weight = linear_case.weight("low_rank")
    assert isinstance(weight, LowRank)
    factors = weight.u, weight.v
    ops = {
        "dense": (F.linear, [weight.to_dense()]),
        "low_rank_linear": (low_rank_linear, factors),
        "two F.linear": (two_linears, factors),
    }
    candidates = linear_candidates(linear_case, weight, ops)
    report_linear(str(linear_case), candidates, "low_rank_linear")
