"""int8 products of integers, which are exact."""

import pytest
import torch

from lada_kernels.cpu.linear import packed_linear_fwd
from lada_kernels.cpu.packing import Weight, pack
from tests.kernels.operands import row_strided

ROWS = [*range(71), 129, 300]


def whole(rows, columns, step=1.0):
    """Random multiples of `step`; each row holds 127 or -127 of them, so its scale is `step`."""
    t = torch.randint(-127, 128, (rows, columns)).float()
    t[:, 0] = torch.randint(2, (rows,)) * 254.0 - 127
    return t * step


def exact(x, weight):
    return (x.double() @ weight.double().T).float()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_every_number_of_rows(library, threads):
    torch.set_num_threads(threads)
    x, weight = whole(max(ROWS), 37, 2**-7), whole(45, 37, 2**-9)
    packed = pack([Weight(45, 37, sparse=weight)], [None], torch.int8)
    want = exact(x, weight)
    for rows in ROWS:
        y = packed_linear_fwd(packed, x[:rows], library=library)
        torch.testing.assert_close(y, want[:rows], rtol=0, atol=0)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 130])
def test_any_number_of_inputs(library, k):
    x, weight = whole(9, k), whole(40, k)
    packed = pack([Weight(40, k, sparse=weight)], [None], torch.int8)
    y = packed_linear_fwd(packed, row_strided(x), library=library)
    torch.testing.assert_close(y, exact(x, weight), rtol=0, atol=0)


@pytest.mark.parametrize("block", [(32, 16), (16, 16), (8, 4), (3, 5), (1, 1)], ids=str)
def test_blocks_between_holes(library, block):
    mask = torch.rand(5, 7) < 0.4
    mask[:, 0] = True  # column 0 has the largest weights
    mask[2] = False
    elements = mask.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    n, k = elements.shape
    x, weight = whole(9, k), whole(n, k) * elements
    packed = pack([Weight(n, k, sparse=weight, mask=mask)], [None], torch.int8)
    y = packed_linear_fwd(packed, x, library=library)
    torch.testing.assert_close(y, exact(x, weight), rtol=0, atol=0)


@pytest.mark.parametrize("rank", [1, 4, 15, 16, 17, 32, 33, 48])
def test_low_rank_beside_blocks(library, rank):
    """Rows of v are unit vectors, so that x v^T is integer as well."""
    v = torch.eye(37)[torch.randint(37, (rank,))]
    v[0] = torch.eye(37)[0]  # input 0 is the largest
    u, sparse, x = whole(45, rank), whole(45, 37), whole(9, 37)
    packed = pack([Weight(45, 37, u, v, sparse)], [None], torch.int8)
    want = exact(x, u @ v + sparse)
    y = packed_linear_fwd(packed, x, library=library)
    # the scale of v is 1 / 127, which is rounded: the nearest integer is the exact output
    torch.testing.assert_close(y, want, rtol=1e-6, atol=0.5)


def test_rows_of_zeros(library):
    x, weight, bias = whole(9, 37), whole(45, 37), torch.randn(45)
    x[4] = 0
    packed = pack([Weight(45, 37, sparse=weight)], [bias], torch.int8)
    assert packed_linear_fwd(packed, x, library=library)[4].equal(bias)


@pytest.mark.parametrize("step", [2.0**-130, 2.0**-100, 2.0**100])
def test_any_magnitude(library, step):
    """Rows of denormals may count as 0."""
    x, weight = whole(9, 37, step), whole(45, 37, 2**-10)
    packed = pack([Weight(45, 37, sparse=weight)], [None], torch.int8)
    y = packed_linear_fwd(packed, x, library=library)
    torch.testing.assert_close(y, exact(x, weight), rtol=0, atol=1e-35)


def test_unpacked_is_within_half_a_step():
    u, v, sparse = torch.randn(45, 5), torch.randn(5, 37), torch.randn(45, 37)
    parts = pack([Weight(45, 37, u, v, sparse)], [None], torch.int8).unpacked()
    for got, want in zip(parts, (u, v, sparse), strict=True):
        half = want.abs().amax(1, keepdim=True) / 127 / 2
        assert ((got - want).abs() <= half * 1.0001).all()
