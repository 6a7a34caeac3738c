"""LayerNorm in a kernel, seen through a launcher: with u = 0 the output is that of the residual."""

import pytest
import torch

from tests.kernels.operands import dense_oracle, launcher, layer_norm

pytestmark = pytest.mark.usefixtures("poisoned_outputs")


@pytest.fixture
def normalized(kernels, device):
    def run(rows, norm):
        (m, n), zero = rows.shape, torch.zeros(16, 16, device=device)
        x, u = zero.new_zeros((m, 16)), zero.new_zeros((n, 16))
        variant = kernels.variants.Variant("one_launch")
        fwd = launcher(kernels, "low_rank_linear", variant=variant)
        return fwd(x, u, zero, None, rows.to(device), norm=norm).cpu()

    return run


def expected(rows, norm):
    return dense_oracle(
        torch.zeros(len(rows), 1), torch.zeros(rows.shape[1], 1), None, rows, norm=norm
    )


@pytest.mark.parametrize("n", [1, 3, 64, 65, 200])
def test_is_layer_norm(normalized, n):
    rows, norm = torch.randn(5, n), layer_norm(n, torch.float32, "cpu")
    torch.testing.assert_close(
        normalized(rows, norm).double(), expected(rows, norm), rtol=1e-5, atol=1e-5
    )


def test_rows_with_a_large_mean_keep_their_variance(normalized):
    """A variance from sums of squares would be off by more than itself."""
    rows, norm = torch.randn(4, 200) + 4096, layer_norm(200, torch.float32, "cpu")
    torch.testing.assert_close(
        normalized(rows, norm).double(), expected(rows, norm), rtol=1e-3, atol=1e-3
    )


def test_constant_rows_give_the_bias(normalized):
    norm = layer_norm(70, torch.float32, "cpu")
    got = normalized(torch.full((2, 70), 3.0), norm)
    torch.testing.assert_close(got, norm[1].expand(2, 70))


def test_a_row_with_nan_spoils_itself_alone(normalized):
    rows, norm = torch.randn(3, 70), layer_norm(70, torch.float32, "cpu")
    rows[1, 5] = torch.nan
    got = normalized(rows, norm)
    assert got[1].isnan().all()
    assert got[[0, 2]].isfinite().all()
