"""`block_sparse_linear` beside the dense product and torch's block-sparse one."""

import torch.nn.functional as F

from benchmarks.shapes import LinearCase, linear_candidates, torch_bsr
from lada_ops import Bsr, block_sparse_linear


def test_block_sparse_linear(linear_case: LinearCase, report_linear):
    weight = linear_case.weight("block_sparse")
    assert isinstance(weight, Bsr)
    blocks = weight.crow_indices, weight.col_indices, weight.values
    ops = {
        "dense": (F.linear, [weight.to_dense()]),
        "block_sparse_linear": (block_sparse_linear, blocks),
        "torch.sparse_bsr": (F.linear, [torch_bsr(weight)]),
    }
    candidates = linear_candidates(linear_case, weight, ops)
    report_linear(str(linear_case), candidates, "block_sparse_linear")
