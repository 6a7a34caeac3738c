"""Activations, as those of a linear with weight 0, which are the activations of its bias."""

import pytest
import torch

from lada_kernels.cpu.linear import packed_linear_fwd
from lada_kernels.cpu.packing import Weight, pack
from tests.kernels.operands import ACTIVATIONS

INF = float("inf")
TAILS = [-INF, -3e38, -1e33, -1e4, -104.0, -88.8, -87.0, -20.0, 20.0, 87.0, 88.8, 104.0, 1e4, INF]
NANS = [0x7FC00000, 0x7F800001, 0x7FC00001, 0x7FC001FF, 0x7FFFFFFF, -1]  # bits


def activated(library, activation, values, dtype=torch.float32):
    """Activations (n,) of fp32 values (n,), in `dtype`."""
    n = len(values)
    packed = pack([Weight(n, 1, sparse=torch.zeros(n, 1))], [values], dtype)
    x = torch.zeros(1, 1, dtype=dtype)
    return packed_linear_fwd(packed, x, None, activation, library=library)[0]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_is_right_to_a_few_roundings(library, activation):
    values = torch.cat([torch.linspace(-10, 10, 40001), torch.tensor([0.0, -0.0, 1e-30, 1e-42])])
    want = ACTIVATIONS[activation](values.double())
    error = (activated(library, activation, values).double() - want).abs()
    assert (error / want.abs().clamp(1)).max() < 1e-6


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_tails(library, activation):
    values = torch.tensor(TAILS)
    got = activated(library, activation, values)
    want = ACTIVATIONS[activation](values.double()).float()
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nan_stays_nan_whatever_its_bits(library, activation):
    values = torch.tensor(NANS, dtype=torch.int32).view(torch.float32)
    assert activated(library, activation, values).isnan().all()


def test_bf16_is_rounded_to_nearest_even(library):
    """Random bits, without denormals; every other value is halfway between two bf16."""
    bits = torch.randint(-(2**31), 2**31, (20001,)).int()
    bits[::2] = bits[::2] & ~0xFFFF | 0x8000
    values = bits.view(torch.float32)
    values[values.abs() < 1e-37] = 0
    got = activated(library, "none", values, torch.bfloat16)
    torch.testing.assert_close(got, values.bfloat16(), rtol=0, atol=0, equal_nan=True)
