import copy
import pickle

import pytest
import torch

from lada_kernels.cpu.linear import packed_linear_fwd
from lada_kernels.cpu.packing import pack
from tests.kernels.cpu.operands import assert_near, io_dtype, quantized, weight_case

FORMATS = [{"rank": 24}, {"block": (32, 16)}, {"rank": 10, "block": (32, 16)}, {}]


def joint(dtype):
    cases = [
        weight_case(n, 96, dtype, **spec) for n, spec in zip((64, 32, 96, 50), FORMATS, strict=True)
    ]
    biases = [torch.randn(64), None, torch.randn(96), torch.randn(50)]
    return cases, biases, pack([case.weight for case in cases], biases, dtype)


def outputs(cases, biases, x):
    none = torch.zeros(())
    pairs = zip(cases, biases, strict=True)
    return [case.oracle(x) + (none if b is None else b).double() for case, b in pairs]


def test_weights_side_by_side(dtype, library):
    cases, biases, packed = joint(dtype)
    x = torch.randn(19, 96).to(io_dtype(dtype))
    want = torch.cat(outputs(cases, biases, x), 1)
    assert_near(packed_linear_fwd(packed, x, library=library), want, dtype)


@pytest.mark.parametrize("i", range(4))
def test_a_part_alone(i, dtype, library):
    cases, biases, packed = joint(dtype)
    x = torch.randn(19, 96).to(io_dtype(dtype))
    part = packed.part(i)
    assert part.sparse_u.values is packed.sparse_u.values
    assert_near(packed_linear_fwd(part, x, library=library), outputs(cases, biases, x)[i], dtype)


@pytest.mark.parametrize("i", range(4))
def test_unpacking_gives_the_weights_back(i, dtype):
    cases, _, packed = joint(dtype)
    weight = cases[i].weight
    for got, want in zip(
        packed.part(i).unpacked(), (weight.u, weight.v, weight.sparse), strict=True
    ):
        if want is None:
            assert got.numel() == 0 or not got.any()
        elif dtype == torch.int8:
            torch.testing.assert_close(got, quantized(want))
        else:
            torch.testing.assert_close(got, want.to(dtype), rtol=0, atol=0)


def test_sparse_weights_take_the_memory_of_their_blocks():
    mask = torch.zeros(24, 48, dtype=torch.bool)
    mask[:, :5] = True
    packed = pack(
        [weight_case(768, 768, torch.float32, block=(32, 16), mask=mask).weight],
        [None],
        torch.float32,
    )
    assert packed.sparse_u.values.nbytes == 4 * 768 * 5 * 16
    assert packed.nbytes < 1.01 * packed.sparse_u.values.nbytes


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))])
def test_copies_compute_the_same(copied, dtype, library):
    cases, biases, packed = joint(dtype)
    x = torch.randn(5, 96).to(io_dtype(dtype))
    want = packed_linear_fwd(packed, x, library=library)
    copy_of_it = copied(packed)
    del packed, cases
    torch.testing.assert_close(packed_linear_fwd(copy_of_it, x, library=library), want)
