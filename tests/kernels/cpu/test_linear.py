import pytest
import torch
import torch.nn.functional as F

from lada_kernels.cpu.linear import packed_linear_fwd
from lada_kernels.cpu.packing import Weight, pack
from tests.kernels.cpu.operands import TOLERANCE, WeightCase, assert_near, io_dtype, weight_case
from tests.kernels.operands import ACTIVATIONS

pytestmark = pytest.mark.usefixtures("poisoned_outputs")

FORMATS = {
    "dense": {},
    "low rank": {"rank": 20},
    "narrow rank": {"rank": 40},
    "sparse": {"block": (32, 16)},
    "both": {"rank": 24, "block": (32, 16)},
}


def run(case, x, library, bias=None, **epilogue):
    return packed_linear_fwd(
        pack([case.weight], [bias], case.dtype), x, library=library, **epilogue
    )


def fenced(t, fence=float("nan")):
    """Copy of `t` with `fence` between and around its rows, off any alignment."""
    rows, columns = t.shape
    buffer = torch.full((rows + 2, columns + 7), fence, dtype=t.dtype)
    view = buffer[1:-1, 3 : 3 + columns]
    return view.copy_(t)


@pytest.mark.parametrize("weight_format", FORMATS)
def test_any_format(weight_format, dtype, library):
    case = weight_case(96, 80, dtype, **FORMATS[weight_format])
    x, bias = torch.randn(37, 80).to(io_dtype(dtype)), torch.randn(96)
    assert_near(run(case, x, library, bias), case.oracle(x) + bias.double(), dtype)


@pytest.mark.parametrize("m", [*range(1, 18), 31, 32, 33, 63, 65, 97, 130, 300])
def test_any_number_of_rows(m, dtype, library):
    case = weight_case(64, 48, dtype, rank=16, block=(32, 16))
    x = torch.randn(m, 48).to(io_dtype(dtype))
    assert_near(run(case, x, library), case.oracle(x), dtype)


@pytest.mark.usefixtures("poisoned_workspace")
@pytest.mark.parametrize(
    ("n", "k"), [(1, 1), (1, 40), (40, 1), (7, 13), (33, 31), (50, 67), (129, 5)]
)
@pytest.mark.parametrize("rank", [0, 1, 5, 17, 33])
def test_any_size(n, k, rank, dtype, library):
    case = weight_case(n, k, dtype, rank=rank)
    x = torch.randn(9, k).to(io_dtype(dtype))
    assert_near(run(case, x, library), case.oracle(x), dtype)


@pytest.mark.parametrize(
    "block",
    [
        (128, 16),
        (64, 16),
        (64, 32),
        (32, 32),
        (16, 16),
        (8, 4),
        (1, 1),
        (3, 5),
        (16, 128),
        (128, 1),
    ],
    ids=str,
)
def test_any_block(block, dtype, library):
    n, k = (2 * block[0], 3 * block[1]) if block[0] >= 64 else (6 * block[0], 6 * block[1])
    case = weight_case(n, k, dtype, block=block)
    x = torch.randn(11, k).to(io_dtype(dtype))
    assert_near(run(case, x, library), case.oracle(x), dtype)


def test_segments_of_many_lengths(dtype, library):
    case = weight_case(96, 480, dtype, rank=40, block=(32, 24))
    x = torch.randn(37, 480).to(io_dtype(dtype))
    assert_near(run(case, x, library), case.oracle(x), dtype)


@pytest.mark.parametrize("pattern", ["none", "all", "empty rows", "last corner"])
def test_any_pattern(pattern, dtype, library):
    mask = torch.zeros(4, 6, dtype=torch.bool)
    if pattern == "all":
        mask[:] = True
    elif pattern == "empty rows":
        mask[1::2] = torch.rand(2, 6) < 0.5
    elif pattern == "last corner":
        mask[-1, -1] = True
    case = weight_case(128, 96, dtype, block=(32, 16), mask=mask)
    x = torch.randn(9, 96).to(io_dtype(dtype))
    assert_near(run(case, x, library), case.oracle(x), dtype)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation(activation, library):
    x = torch.cat([torch.linspace(-12, 12, 997), torch.tensor([0.0, -0.0, 1e-30, 1e4, -1e4])])[
        :, None
    ]
    case = WeightCase(Weight(1, 1, sparse=torch.ones(1, 1)), torch.float32)
    y = run(case, x, library, activation=activation)
    want = ACTIVATIONS[activation](x.double())
    torch.testing.assert_close(y.double(), want, rtol=1e-6, atol=1.5e-6)


@pytest.mark.parametrize("n", [1, 15, 32, 50, 768])
def test_norm(n, dtype, library):
    case = weight_case(n, 40, dtype, rank=8)
    x, bias = torch.randn(19, 40).to(io_dtype(dtype)), torch.randn(n)
    residual = torch.randn(19, n).to(io_dtype(dtype))
    weight, shift = torch.randn(n), torch.randn(n)
    y = run(case, x, library, bias, residual=residual, norm=(weight, shift, 1e-5))
    z = case.oracle(x) + bias.double() + residual.double()
    want = F.layer_norm(z, (n,), weight.double(), shift.double(), 1e-5)
    # LayerNorm magnifies the rounding errors of a row
    bound = TOLERANCE[dtype] * (1 + 1 / (z.var(1, unbiased=False) + 1e-5).sqrt().min()) * 3
    torch.testing.assert_close(y.double(), want, rtol=0, atol=float(bound))


def test_norm_of_a_row_with_a_large_mean(library):
    case = WeightCase(Weight(64, 8, sparse=torch.zeros(64, 8)), torch.float32)
    residual = 1e4 + torch.randn(3, 64)
    norm = torch.ones(64), torch.zeros(64), 1e-5
    y = run(case, torch.zeros(3, 8), library, residual=residual, norm=norm)
    want = F.layer_norm(residual.double(), (64,))
    torch.testing.assert_close(y.double(), want, rtol=0, atol=1e-3)


def test_residual_comes_after_the_activation(dtype, library):
    case = weight_case(40, 24, dtype)
    x, residual = (torch.randn(9, n).to(io_dtype(dtype)) for n in (24, 40))
    y = run(case, x, library, residual=residual, activation="relu")
    assert_near(y, case.oracle(x).relu() + residual.double(), dtype)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("m", [5, 70, 400])
def test_any_number_of_threads(m, threads, dtype, library):
    """Threads share the panels of few rows, and split many rows."""
    torch.set_num_threads(threads)
    case = weight_case(160, 64, dtype, rank=40, block=(32, 16))
    x = torch.randn(m, 64).to(io_dtype(dtype))
    assert_near(run(case, x, library), case.oracle(x), dtype)


@pytest.mark.parametrize("weight_format", FORMATS)
def test_reads_nothing_beside_its_operands(weight_format, dtype, library):
    case = weight_case(96, 80, dtype, **FORMATS[weight_format])
    x, residual = (torch.randn(11, n).to(io_dtype(dtype)) for n in (80, 96))
    y = run(case, fenced(x), library, residual=fenced(residual))
    assert_near(y, case.oracle(x) + residual.double(), dtype)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("weight_format", FORMATS)
def test_what_is_not_finite_stays_in_its_row(weight_format, value, dtype, library):
    case = weight_case(96, 80, dtype, **FORMATS[weight_format])
    x = torch.randn(11, 80).to(io_dtype(dtype))
    want = case.oracle(x)
    x[4, 7] = value
    if case.weight.mask is not None:
        case.weight.mask[:] = True
    y = run(case, x, library)
    assert not y[4].isfinite().any()
    rest = [i for i in range(11) if i != 4]
    assert_near(y[rest], want[rest], dtype)


@pytest.mark.parametrize("scale", [1e-40, 1e-20, 1e15])
def test_tiny_and_huge_values(scale, library):
    case = weight_case(40, 24, torch.float32)
    x = torch.randn(9, 24) * scale
    y = run(case, x, library)
    smallest = 1e-44  # some steps of fp32 denormals
    atol = max(scale * 1e-5, smallest)
    torch.testing.assert_close(y.double(), case.oracle(x), rtol=1e-4, atol=atol)


def test_no_rows(dtype, library):
    x = torch.empty(0, 24).to(io_dtype(dtype))
    assert run(weight_case(40, 24, dtype), x, library).shape == (0, 40)
