"""`activate`, seen through a launcher: with x = 0 the output is the activation of the bias."""

import pytest
import torch

from tests.kernels.operands import ACTIVATIONS

pytestmark = pytest.mark.usefixtures("poisoned_outputs")


@pytest.fixture
def activate(kernels, device):
    def run(values, activation):
        zero = torch.zeros(1, 1, device=device)
        u = torch.zeros(values.numel(), 1, device=device)
        y = kernels.low_rank_linear.low_rank_linear_fwd(
            zero, u, zero, values.to(device), None, activation
        )
        return y[0].cpu()

    return run


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_is_accurate_to_fp32(activate, activation):
    x = torch.cat([torch.linspace(-8, 8, 1000), torch.linspace(-200, 200, 400)])
    want = ACTIVATIONS[activation](x.double())
    torch.testing.assert_close(activate(x, activation).double(), want, rtol=1e-6, atol=1e-6)


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
