"""Work, ceilings, and how near a time comes to them."""

import pytest
import torch

from benchmarks.suite.roofline import Ceilings, Work, achieved, size

CEILINGS = Ceilings(flops_per_second=1e12, bytes_per_second=1e9)


def test_arithmetic_bounds_work_of_many_operations():
    assert CEILINGS.seconds(Work(flops=int(4e12), bytes=int(1e9))) == 4.0


def test_traffic_bounds_work_of_many_bytes():
    assert CEILINGS.seconds(Work(flops=int(1e12), bytes=int(3e9))) == 3.0


def test_what_a_time_achieved():
    got = achieved(Work(flops=int(4e12), bytes=int(1e9)), 8.0, CEILINGS)
    assert got == {"tflops": 0.5, "gigabytes_per_second": 0.125, "roofline_fraction": 0.5}


def test_without_ceilings_there_is_no_fraction():
    assert achieved(Work(1, 1), 1.0, None)["roofline_fraction"] is None


def test_size_of_dense_tensors():
    assert size([torch.empty(3, 5, dtype=torch.float16), torch.empty(7)]) == 30 + 28


@pytest.mark.filterwarnings("ignore:Sparse BSR")
def test_size_of_a_block_sparse_tensor_is_that_of_its_parts():
    dense = torch.zeros(32, 32)
    dense[:16, :16] = 1
    # one block of fp32; crow_indices (3,) and col_indices (1,) of int64
    assert size([dense.to_sparse_bsr((16, 16))]) == 1024 + 24 + 8
