"""Operands off alignment and far apart, and calls that need next to no scratch memory."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from lada_kernels.cpu.encoder import PackedEncoder, PackedLayer
from lada_kernels.cpu.linear import packed_linear_fwd
from lada_kernels.cpu.packing import Weight, pack
from tests.kernels.operands import assert_matches, dense_oracle, far_apart_rows, fenced

NAN = float("nan")


@pytest.fixture(params=["float32", "bfloat16"])
def dtype(request) -> torch.dtype:
    return getattr(torch, request.param)


def normal(*shape, dtype=torch.float32):
    return torch.randn(shape).to(dtype)


def linear(n, k, dtype):
    """Packed weight of low rank plus a sparse part, its dense fp64 matrix and its bias."""
    u, v, sparse = (normal(*shape, dtype=dtype) / 8 for shape in [(n, 3), (3, k), (n, k)])
    bias = torch.randn(n)
    packed = pack([Weight(n, k, u, v, sparse)], [bias], dtype)
    return packed, u.double() @ v.double() + sparse.double(), bias


def tight(tensor):
    """Copy of a matrix, one element behind the start of its memory and right up to its end."""
    buffer = torch.empty(1 + tensor.numel(), dtype=tensor.dtype)
    return buffer[1:].view(tensor.shape).copy_(tensor)


def called_by_a_new_thread(function, *args, **kwargs):
    """Result of a call on a new thread, which has no memory from earlier calls."""
    with ThreadPoolExecutor(1) as pool:
        threads = torch.get_num_threads()
        pool.submit(torch.set_num_threads, threads).result()
        return pool.submit(function, *args, **kwargs).result()


@pytest.mark.parametrize("k", [1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 64])
def test_misaligned(library, dtype, k):
    packed, weight, bias = linear(k + 6, k, dtype)
    x, residual = normal(9, k, dtype=dtype), normal(9, k + 6, dtype=dtype)
    y = packed_linear_fwd(packed, tight(x), tight(residual), library=library)
    assert_matches(y, dense_oracle(x, weight, bias, residual))


@pytest.mark.parametrize("n", [1, 8, 15, 33])
def test_norm_reads_nothing_outside_its_operands(library, n):
    packed, weight, bias = linear(n, 24, torch.float32)
    x, residual = torch.randn(9, 24), 3 * torch.arange(n).expand(9, n).float()
    scale, shift, eps = torch.randn(n), torch.randn(n), 1e-3
    norm = fenced(scale, NAN), fenced(shift, NAN), eps
    y = packed_linear_fwd(packed, x, residual, norm=norm, library=library)
    assert_matches(y, dense_oracle(x, weight, bias, residual, norm=(scale, shift, eps)))


def test_rows_2_to_the_31_elements_apart(library):
    x = far_apart_rows(3, 40).view(torch.bfloat16).copy_(torch.randn(3, 40))
    packed, weight, bias = linear(24, 40, torch.bfloat16)
    assert_matches(packed_linear_fwd(packed, x, library=library), dense_oracle(x, weight, bias))


def test_rows_in_the_same_place(library, dtype):
    packed, weight, bias = linear(24, 40, dtype)
    x = normal(1, 40, dtype=dtype).expand(20, -1)
    assert_matches(packed_linear_fwd(packed, x, library=library), dense_oracle(x, weight, bias))


@pytest.mark.parametrize("threads", [1, 2])
def test_no_inputs(library, dtype, threads):
    torch.set_num_threads(threads)
    bias = normal(40, dtype=dtype)
    packed = pack([Weight(40, 0, sparse=torch.empty(40, 0, dtype=dtype))], [bias], dtype)
    x = torch.empty(3, 0, dtype=dtype)
    y = called_by_a_new_thread(packed_linear_fwd, packed, x, library=library)
    torch.testing.assert_close(y, bias.expand(3, 40), rtol=0, atol=0)


@pytest.mark.parametrize("threads", [1, 2])
def test_encoder_without_tokens(library, dtype, threads):
    torch.set_num_threads(threads)
    norm = np.ones(32, np.float32), np.zeros(32, np.float32), 1e-5
    qkv, square = linear(96, 32, dtype)[0], linear(32, 32, dtype)[0]
    layer = PackedLayer(qkv, square, square, square, norm, norm, "gelu")
    x, starts = torch.empty(0, 32, dtype=dtype), torch.zeros(3, dtype=torch.int64)
    run_ = PackedEncoder([layer], heads=2, scale=0.25).run_
    assert called_by_a_new_thread(run_, x, starts, library=library).shape == (0, 32)
