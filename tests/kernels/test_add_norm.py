import pytest
import torch

from tests.kernels.operands import (
    ACTIVATIONS,
    TOLERANCE,
    assert_matches,
    dense_oracle,
    far_apart_rows,
    layer_norm,
    normal,
    row_strided,
)

pytestmark = pytest.mark.usefixtures("poisoned_outputs")


@pytest.fixture
def fwd(kernels):
    """The launcher as a function of x, activation, residual, norm and bias."""

    def call(x, activation, residual, norm, bias=None):
        epilogue = kernels.epilogue.Epilogue(bias, activation, residual, norm)
        return kernels.add_norm.add_norm_fwd(x, epilogue)

    return call


def expected(x, activation, residual, norm, bias=None):
    one = torch.eye(x.shape[1], dtype=torch.float64, device=x.device)
    return dense_oracle(x, one, bias, residual, activation, norm)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("has_norm", [True, False], ids=["norm", "no-norm"])
@pytest.mark.parametrize(
    ("m", "n"),
    [(1, 1), (1, 97), (2, 3), (7, 64), (53, 31), (5, 768), (3, 1024), (2, 1031), (1, 5000)],
)
def test_any_size(fwd, m, n, has_norm, dtype, device):
    kind = {"dtype": dtype, "device": device}
    x, residual = normal(m, n, **kind), normal(m, n, **kind)
    norm = layer_norm(n, **kind) if has_norm else None
    assert_matches(fwd(x, "gelu", residual, norm), expected(x, "gelu", residual, norm))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("has_residual", [True, False], ids=["residual", "no-residual"])
@pytest.mark.parametrize("has_norm", [True, False], ids=["norm", "no-norm"])
@pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "no-bias"])
def test_every_step_may_be_left_out(fwd, has_bias, has_norm, has_residual, activation, device):
    kind = {"dtype": torch.float32, "device": device}
    x = normal(19, 24, **kind)
    bias = normal(24, **kind) if has_bias else None
    residual = normal(19, 24, **kind) if has_residual else None
    norm = layer_norm(24, **kind) if has_norm else None
    want = expected(x, activation, residual, norm, bias)
    assert_matches(fwd(x, activation, residual, norm, bias), want)


def test_without_any_step_it_is_x_itself(fwd, device):
    x = normal(3, 5, dtype=torch.float32, device=device)
    assert fwd(x, "none", None, None) is x


def test_the_sum_is_not_rounded_before_the_norm(fwd, device):
    """2048 and a residual below 1 are 2048 or 2050 in fp16, which the norm would make of them."""
    kind = {"dtype": torch.float16, "device": device}
    x, residual = torch.full((4, 200), 2048.0, **kind), torch.rand(4, 200).to(**kind)
    norm = torch.ones(200, **kind), torch.zeros(200, **kind), 1e-5
    assert_matches(fwd(x, "none", residual, norm), expected(x, "none", residual, norm))


def test_rows_with_a_large_mean_keep_their_variance(fwd, device):
    kind = {"dtype": torch.float32, "device": device}
    x, norm = normal(4, 200, **kind) + 4096, layer_norm(200, **kind)
    want = expected(x, "none", None, norm)
    torch.testing.assert_close(fwd(x, "none", None, norm).double(), want, rtol=1e-3, atol=1e-3)


def test_a_row_with_nan_spoils_itself_alone(fwd, device):
    kind = {"dtype": torch.float32, "device": device}
    x = normal(20, 70, **kind)
    x[11, 5] = torch.nan
    spoilt = fwd(x, "none", None, layer_norm(70, **kind)).isnan()
    assert spoilt[11].all()
    assert spoilt.sum() == 70


def test_gelu_is_that_of_erf_in_16_bits_too(fwd, device):
    x = torch.linspace(-4, 0, 2001).to(device, torch.float16)[None]
    error = fwd(x, "gelu", None, None).double() - torch.nn.functional.gelu(x.double())
    assert error.abs().max() < 1e-4


@pytest.mark.parametrize("has_norm", [True, False], ids=["norm", "no-norm"])
def test_reads_nothing_outside_its_operands(fwd, has_norm, watch_reads, device):
    kind = {"dtype": torch.float32, "device": device}
    x, residual, norm = normal(21, 45, **kind), normal(21, 45, **kind), layer_norm(45, **kind)
    norm = norm if has_norm else None
    want = expected(x, "none", residual, norm)
    x, residual = row_strided(x), row_strided(residual)
    watch_reads(x, residual, *(norm[:2] if norm else ()))
    assert_matches(fwd(x, "none", residual, norm), want)


def test_rows_far_apart(fwd, device):
    if device.type == "cuda":
        pytest.skip("takes four GiB there")
    x = far_apart_rows(33, 40)
    assert_matches(fwd(x, "relu", x, None), expected(x, "relu", x, None))


@pytest.mark.parametrize("shape", [(0, 12), (3, 0)], ids=["no-rows", "no-columns"])
def test_empty_output(fwd, shape, device):
    kind = {"dtype": torch.float32, "device": device}
    x, norm = normal(*shape, **kind), layer_norm(shape[1], **kind)
    assert fwd(x, "gelu", x, norm).shape == shape
