import pytest
import torch

from tests.kernels.operands import (
    ACTIVATIONS,
    assert_matches,
    dense_oracle,
    factors,
    far_apart_rows,
    fenced,
    normal,
    row_strided,
)

pytestmark = pytest.mark.usefixtures("poisoned_outputs")

SHAPES = [
    pytest.param(1, 16, 16, 16, id="one-row"),
    pytest.param(2, 1, 1, 1, id="all-ones"),
    pytest.param(17, 53, 101, 13, id="primes"),
    pytest.param(33, 80, 48, 5, id="nothing-divides"),
    pytest.param(64, 128, 192, 64, id="even"),
    pytest.param(70, 136, 72, 96, id="padded-rank"),
    pytest.param(5, 72, 200, 256, id="largest-rank"),
    pytest.param(3, 40, 64, 161, id="odd-large-rank"),
]


@pytest.fixture
def fwd(kernels):
    return kernels.low_rank_linear.low_rank_linear_fwd


@pytest.mark.parametrize(("m", "n", "k", "rank"), SHAPES)
def test_is_a_dense_linear(fwd, m, n, k, rank, dtype, device):
    kind = {"dtype": dtype, "device": device}
    x, bias, residual = normal(m, k, **kind), normal(n, **kind), normal(m, n, **kind)
    u, v = factors(n, k, rank, **kind)
    want = dense_oracle(x, u.double() @ v.double(), bias, residual, "gelu")
    assert_matches(fwd(x, u, v, bias, residual, "gelu"), want)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("has_residual", [True, False], ids=["residual", "no-residual"])
@pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "no-bias"])
def test_epilogue(fwd, has_bias, has_residual, activation, device):
    kind = {"dtype": torch.float32, "device": device}
    x, (u, v) = normal(19, 40, **kind), factors(24, 40, 7, **kind)
    bias = normal(24, **kind) if has_bias else None
    residual = normal(19, 24, **kind) if has_residual else None
    want = dense_oracle(x, u.double() @ v.double(), bias, residual, activation)
    assert_matches(fwd(x, u, v, bias, residual, activation), want)


def test_reads_nothing_outside_its_operands(fwd, watch_reads, dtype, device):
    kind = {"dtype": dtype, "device": device}
    x, bias, residual = normal(21, 45, **kind), normal(37, **kind), normal(21, 37, **kind)
    u, v = factors(37, 45, 11, **kind)
    want = dense_oracle(x, u.double() @ v.double(), bias, residual)
    x, residual = row_strided(x), row_strided(residual)
    u, v, bias = (fenced(t, float("nan")) for t in (u, v, bias))
    watch_reads(x, u, v, bias, residual)
    assert_matches(fwd(x, u, v, bias, residual), want)


def test_rows_beyond_32_bit_offsets(fwd, device):
    if device.type == "cuda":
        pytest.skip("memory is not allocated lazily on a GPU")
    x, (u, v) = far_apart_rows(33, 16), factors(16, 16, 16, torch.float16, device)
    assert_matches(fwd(x, u, v, None), dense_oracle(x, u.double() @ v.double()))


def test_no_rows(fwd, device):
    kind = {"dtype": torch.float32, "device": device}
    assert fwd(normal(0, 8, **kind), *factors(12, 8, 4, **kind), None).shape == (0, 12)


@pytest.mark.parametrize("m", [1, 100, 300])
def test_split_covers_n(kernels, fwd, m, device, monkeypatch):
    """However few programs are asked for, each column is computed."""
    monkeypatch.setattr(kernels.low_rank_linear, "_MIN_PROGRAMS", 12)
    kind = {"dtype": torch.float32, "device": device}
    x, (u, v) = normal(m, 16, **kind), factors(330, 16, 8, **kind)
    assert_matches(fwd(x, u, v, None), dense_oracle(x, u.double() @ v.double()))
