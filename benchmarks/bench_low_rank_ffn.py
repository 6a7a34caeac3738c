"""`low_rank_ffn` beside the dense feed-forward and two low-rank linears, GELU and norm included."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.shapes import DEVICE, DTYPE, FfnCase, in_fp64
from lada_ops import LowRank, Norm, low_rank_ffn, low_rank_linear
from lada_ops.latency import Candidate


def dense(x, up, bias1, down, bias2, norm):
    y = F.linear(F.gelu(F.linear(x, up, bias1)), down, bias2) + x
    return F.layer_norm(y, norm.weight.shape, *norm)


def one_op(x, u1, v1, bias1, u2, v2, bias2, norm):
    return low_rank_ffn(x, u1, v1, bias1, u2, v2, bias2, residual=x, norm=norm)


def two_ops(x, u1, v1, bias1, u2, v2, bias2, norm):
    h = low_rank_linear(x, u1, v1, bias1, activation="gelu")
    return low_rank_linear(h, u2, v2, bias2, residual=x, norm=norm)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, device=DEVICE, dtype=DTYPE)


def test_low_rank_ffn(ffn_case: FfnCase, report_linear):
    up, down = ffn_case.up.weight("low_rank"), ffn_case.down.weight("low_rank")
    assert isinstance(up, LowRank)
    assert isinstance(down, LowRank)
    x, bias1 = normal(ffn_case.tokens, ffn_case.features), normal(ffn_case.hidden)
    bias2 = normal(ffn_case.features)
    norm = Norm(normal(ffn_case.features), normal(ffn_case.features))
    weights = up.u, up.v, bias1, down.u, down.v, bias2
    dense_weights = up.to_dense(), bias1, down.to_dense(), bias2
    in_double = in_fp64(up), bias1.double(), in_fp64(down), bias2.double()
    expected = dense(x.double(), *in_double, Norm(norm.weight.double(), norm.bias.double()))
    ops = {
        "dense": (dense, dense_weights),
        "low_rank_ffn": (one_op, weights),
        "two low_rank_linear": (two_ops, weights),
    }
    candidates = [
        Candidate(
            name,
            [
                partial(op, x, *(tensor.clone() for tensor in tensors), norm)
                for _ in range(ffn_case.copies)
            ],
            expected,
        )
        for name, (op, tensors) in ops.items()
    ]
    report_linear(str(ffn_case), candidates, "low_rank_ffn")
