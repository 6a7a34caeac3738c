"""`activate`, seen through a launcher: with x = 0 the output is the activation of the bias."""

import pytest
import torch

from tests.kernels.operands import ACTIVATIONS

pytestmark = pytest.mark.usefixtures("poisoned_outputs")


@pytest.fixture
def activate(kernels, device):
    def run(values, activation):
        zero = torch.zeros(1, 1, device=device)
        w = torch.zeros(values.numel(), 1, device=device)
        epilogue = kernels.epilogue.Epilogue(values.to(device), activation)
        y = kernels.linear.linear_fwd(zero, w, epilogue)
        return y[0].cpu()

    return run


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_is_accurate_to_fp32(activate, activation):
    x = torch.cat([torch.linspace(-8, 8, 1000), torch.linspace(-200, 200, 400)])
    want = ACTIVATIONS[activation](x.double())
    torch.testing.assert_close(activate(x, activation).double(), want, rtol=1e-6, atol=1e-6)


def test_polynomial_gelu_is_within_2e_4_of_erf(activate):
    x = torch.cat([torch.linspace(-8, 8, 4001), torch.tensor([-1e4, -200.0, 200.0, 1e4])])
    want = ACTIVATIONS["gelu"](x.double())
    torch.testing.assert_close(activate(x, "gelu_poly").double(), want, rtol=1e-6, atol=2e-4)


def test_polynomial_gelu_keeps_infinities_and_nan(activate):
    got = activate(torch.tensor([-torch.inf, torch.inf, torch.nan]), "gelu_poly")
    want = torch.tensor([0.0, torch.inf, torch.nan])
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize(
    ("activation", "dtype", "exact_gelu", "want"),
    [
        ("gelu", torch.float16, False, "gelu_poly"),
        ("gelu", torch.bfloat16, False, "gelu_poly"),
        ("gelu", torch.bfloat16, True, "gelu"),
        ("gelu", torch.float32, False, "gelu"),
        ("gelu_tanh", torch.bfloat16, False, "gelu_tanh"),
    ],
)
def test_gelu_is_a_polynomial_in_16_bit(kernels, activation, dtype, exact_gelu, want):
    assert kernels.activations.kernel_activation(activation, dtype, exact_gelu) == want


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_stays_finite_for_large_arguments(activate, activation):
    x = torch.tensor([-1e4, -1e3, -89.0, 89.0, 1e3, 1e4])
    want = ACTIVATIONS[activation](x.double())
    torch.testing.assert_close(activate(x, activation).double(), want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("activation", "limits"),
    [
        ("none", (-torch.inf, torch.inf)),
        ("relu", (0.0, torch.inf)),
        ("gelu", (0.0, torch.inf)),
        ("gelu_tanh", (0.0, torch.inf)),
        ("silu", (0.0, torch.inf)),
        ("tanh", (-1.0, 1.0)),
    ],
)
def test_infinity_gives_the_limit(activate, activation, limits):
    got = activate(torch.tensor([-torch.inf, torch.inf]), activation)
    torch.testing.assert_close(got, torch.tensor(limits))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nan_stays_nan(activate, activation):
    assert activate(torch.tensor([torch.nan]), activation).isnan().all()


def test_unknown_activation_is_refused(activate):
    with pytest.raises(Exception, match="ACTIVATION"):
        activate(torch.zeros(1), "swiglu")
