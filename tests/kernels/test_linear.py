import pytest
import torch

from tests.kernels.operands import (
    ACTIVATIONS,
    assert_matches,
    dense_oracle,
    launcher,
    normal,
    row_strided,
)

pytestmark = pytest.mark.usefixtures("poisoned_outputs")


@pytest.fixture
def fwd(kernels):
    return launcher(kernels, "linear")


@pytest.mark.parametrize(
    ("m", "n", "k"), [(1, 1, 1), (17, 53, 101), (33, 80, 48), (130, 136, 128), (64, 64, 192)]
)
def test_is_a_dense_linear(fwd, m, n, k, dtype, device):
    kind = {"dtype": dtype, "device": device}
    x, bias, residual = normal(m, k, **kind), normal(n, **kind), normal(m, n, **kind)
    w = normal(n, k, scale=k**-0.5, **kind)
    want = dense_oracle(x, w, bias, residual, "gelu")
    assert_matches(fwd(x, w, bias, residual, "gelu"), want)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("has_residual", [True, False], ids=["residual", "no-residual"])
@pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "no-bias"])
def test_epilogue(fwd, has_bias, has_residual, activation, device):
    kind = {"dtype": torch.float32, "device": device}
    x, w = normal(19, 40, **kind), normal(24, 40, scale=0.1, **kind)
    bias = normal(24, **kind) if has_bias else None
    residual = normal(19, 24, **kind) if has_residual else None
    want = dense_oracle(x, w, bias, residual, activation)
    assert_matches(fwd(x, w, bias, residual, activation), want)


def test_each_group_of_rows_meets_its_own_columns(fwd, dtype, device):
    kind = {"dtype": dtype, "device": device}
    x, w, bias = (
        normal(20, 3 * 24, **kind),
        normal(3 * 70, 24, scale=0.2, **kind),
        normal(210, **kind),
    )
    parts = zip(x.chunk(3, 1), w.chunk(3), bias.chunk(3), strict=True)
    want = torch.cat([dense_oracle(*part) for part in parts], 1)
    assert_matches(fwd(x, w, bias, groups=3), want)


def test_exact_gelu_is_that_of_erf(fwd, device):
    """Bias alone, in fp16, where the polynomial is off by more than a rounding."""
    zero, bias = torch.zeros(1, 1), torch.linspace(-4, 0, 2001)
    operands = (t.to(device, torch.float16) for t in (zero, torch.zeros(2001, 1), bias))
    x, w, bias = operands
    want = torch.nn.functional.gelu(bias.double())
    errors = [
        float((fwd(x, w, bias, None, "gelu", exact_gelu=exact)[0].double() - want).abs().max())
        for exact in (True, False)
    ]
    assert errors[0] < 1e-4 < errors[1] < 3e-4


def test_reads_nothing_outside_its_operands(fwd, watch_reads, device):
    kind = {"dtype": torch.float32, "device": device}
    x, w, residual = normal(21, 45, **kind), normal(37, 45, **kind), normal(21, 37, **kind)
    want = dense_oracle(x, w, None, residual)
    x, residual = row_strided(x), row_strided(residual)
    watch_reads(x, w, residual)
    assert_matches(fwd(x, w, None, residual), want)


@pytest.mark.parametrize("shape", [(0, 12), (3, 0)], ids=["no-rows", "no-columns"])
def test_empty_output(fwd, shape, device):
    kind = {"dtype": torch.float32, "device": device}
    assert fwd(normal(shape[0], 8, **kind), normal(shape[1], 8, **kind), None).shape == shape
