"""Achieved rates, and the bytes of sparse operands."""

import pytest
import torch

from benchmarks.suite.roofline import achieved, stored_bytes
from lada_ops.machine_code.roofline import Ceilings, Work

CEILINGS = Ceilings(flops_per_second=1e12, bytes_per_second=1e9)


def test_achieved_rates_and_share_of_the_roofline():
    got = achieved(Work(flops=int(4e12), bytes=int(1e9)), 8.0, CEILINGS)
    assert got == {"tflops": 0.5, "gigabytes_per_second": 0.125, "roofline_fraction": 0.5}


def test_without_ceilings_there_is_no_share():
    assert achieved(Work(1, 1), 1.0, None)["roofline_fraction"] is None


def test_bytes_of_dense_tensors():
    assert stored_bytes([torch.empty(3, 5, dtype=torch.float16), torch.empty(7)]) == 30 + 28


@pytest.mark.filterwarnings("ignore:Sparse BSR")
def test_bytes_of_a_block_sparse_tensor_are_those_of_its_parts():
    dense = torch.zeros(32, 32)
    dense[:16, :16] = 1
    # one block of fp32; crow_indices (3,) and col_indices (1,) of int64
    assert stored_bytes([dense.to_sparse_bsr((16, 16))]) == 1024 + 24 + 8
