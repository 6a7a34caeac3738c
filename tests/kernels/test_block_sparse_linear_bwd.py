import pytest
import torch

from tests.kernels.operands import (
    assert_matches,
    far_apart_rows,
    fenced,
    normal,
    row_strided,
    sparse_weight,
    to_bsr,
)

pytestmark = pytest.mark.usefixtures("poisoned_outputs")

PATTERNS = {
    "sparse": lambda: torch.rand(7, 23) < 0.1,
    "half": lambda: torch.rand(3, 11) < 0.5,
    "empty-rows": lambda: (torch.rand(5, 9) < 0.4) & (torch.arange(5) % 2 == 1)[:, None],
    "full": lambda: torch.ones(2, 7, dtype=torch.bool),
    "one-block": lambda: torch.ones(1, 1, dtype=torch.bool),
    "last-corner": lambda: torch.arange(18).view(2, 9) == 17,
}
BLOCKS = [(128, 16), (64, 16), (64, 32), (32, 32), (16, 16), (16, 128)]


@pytest.fixture
def bwd(kernels):
    return kernels.block_sparse_linear_bwd


@pytest.fixture
def stay_sparse(bwd, kernels, monkeypatch):
    """The kernels run, however full the pattern is."""
    variant = kernels.variants.Variant("one_launch")
    monkeypatch.setattr(bwd, "choose", lambda *args: variant)
    monkeypatch.setattr(bwd, "guess", lambda *args, **kwargs: variant)


def operands(m, pattern, block, dtype, device):
    """dy, x, the weight, and its BSR; dy is scaled for a gradient of the size of x."""
    weight = sparse_weight(pattern, block, dtype, device)
    n, k = weight.shape
    dy = normal(m, n, dtype=dtype, device=device, scale=m**-0.5)
    return dy, normal(m, k, dtype=dtype, device=device), weight, to_bsr(weight, block)


def blocks_of(dense, crow, col, block):
    """The blocks of `dense` that the indices name, one by one."""
    rows, cols = block
    found = [
        dense[i * rows : (i + 1) * rows, j * cols : (j + 1) * cols]
        for i in range(len(crow) - 1)
        for j in col[crow[i] : crow[i + 1]].tolist()
    ]
    return torch.stack(found) if found else dense.new_zeros(0, rows, cols)


def dvalues_oracle(dy, x, crow, col, block):
    return blocks_of(dy.double().T @ x.double(), crow, col, block)


@pytest.mark.usefixtures("stay_sparse")
@pytest.mark.parametrize("pattern", PATTERNS)
def test_dx_of_any_pattern(bwd, pattern, dtype, device):
    dy, x, weight, bsr = operands(33, PATTERNS[pattern](), (16, 16), dtype, device)
    dx = bwd.block_sparse_linear_dx(dy, *bsr, x.shape[1])
    assert_matches(dx, dy.double() @ weight.double())


@pytest.mark.usefixtures("stay_sparse")
@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_dx_of_any_block(bwd, block, device):
    dy, x, weight, bsr = operands(5, torch.rand(2, 5) < 0.5, block, torch.float16, device)
    dx = bwd.block_sparse_linear_dx(dy, *bsr, x.shape[1])
    assert_matches(dx, dy.double() @ weight.double())


def test_dx_by_the_dense_weight(bwd, dtype, device):
    dy, x, weight, bsr = operands(9, PATTERNS["full"](), (16, 32), dtype, device)
    dx = bwd.block_sparse_linear_dx(dy, *bsr, x.shape[1])
    assert_matches(dx, dy.double() @ weight.double())


@pytest.mark.usefixtures("stay_sparse")
@pytest.mark.parametrize("pattern", PATTERNS)
def test_dvalues_of_any_pattern(bwd, pattern, dtype, device):
    dy, x, _, (crow, col, _) = operands(33, PATTERNS[pattern](), (16, 16), dtype, device)
    got = bwd.block_sparse_linear_dvalues(dy, x, crow, col, 16, 16)
    assert_matches(got, dvalues_oracle(dy, x, crow, col, (16, 16)))


@pytest.mark.usefixtures("stay_sparse")
@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_dvalues_of_any_block(bwd, block, device):
    dy, x, _, (crow, col, _) = operands(20, torch.rand(2, 7) < 0.5, block, torch.float16, device)
    got = bwd.block_sparse_linear_dvalues(dy, x, crow, col, *block)
    assert_matches(got, dvalues_oracle(dy, x, crow, col, block))


@pytest.mark.usefixtures("stay_sparse")
@pytest.mark.parametrize("m", [1, 32, 64, 65, 130])
def test_dvalues_of_any_number_of_rows(bwd, kernels, m, dtype, device, monkeypatch):
    """Sums over 64 rows or more are split over programs."""
    monkeypatch.setattr(kernels.programs, "MIN_ROWS", 32)
    dy, x, _, (crow, col, _) = operands(m, PATTERNS["half"](), (16, 16), dtype, device)
    got = bwd.block_sparse_linear_dvalues(dy, x, crow, col, 16, 16)
    assert_matches(got, dvalues_oracle(dy, x, crow, col, (16, 16)))


def test_dvalues_by_the_whole_product(bwd, dtype, device):
    dy, x, _, (crow, col, _) = operands(9, PATTERNS["full"](), (16, 32), dtype, device)
    got = bwd.block_sparse_linear_dvalues(dy, x, crow, col, 16, 32)
    assert_matches(got, dvalues_oracle(dy, x, crow, col, (16, 32)))


def test_dvalues_with_tiles_narrower_than_a_block(bwd, kernels, device):
    dy, x, _, (crow, col, _) = operands(20, torch.rand(2, 7) < 0.5, (64, 16), torch.float16, device)
    tiles = {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 32, "num_warps": 4, "num_stages": 2}
    tiles = kernels.variants.TileConfig(**tiles)
    got = bwd.block_sparse_linear_dvalues(dy, x, crow, col, 64, 16, tiles)
    assert_matches(got, dvalues_oracle(dy, x, crow, col, (64, 16)))


@pytest.mark.usefixtures("stay_sparse")
def test_dvalues_are_laid_out_by_columns(bwd, device):
    """Panel-major, as values are: an optimiser's step needs equal strides."""
    dy, x, _, bsr = operands(5, PATTERNS["half"](), (16, 32), torch.float32, device)
    got = bwd.block_sparse_linear_dvalues(dy, x, *bsr[:2], 16, 32)
    assert got.stride() == bsr[2].stride()


@pytest.mark.usefixtures("stay_sparse")
@pytest.mark.parametrize("splits", [1, 2])
def test_reads_nothing_outside_its_operands(bwd, kernels, watch_reads, splits, device, monkeypatch):
    m = 33
    monkeypatch.setattr(kernels.programs, "MIN_ROWS", m // splits)
    pattern = PATTERNS["empty-rows"]()
    dy, x, _, (crow, col, _) = operands(m, pattern, (16, 16), torch.float32, device)
    want = dvalues_oracle(dy, x, crow, col, (16, 16))
    dy, x = row_strided(dy), row_strided(x)
    # past the end of a row of x, where the NaN are
    crow, col = fenced(crow, col.numel() + 4), fenced(col, pattern.shape[1])
    watch_reads(dy, x, crow, col)
    assert_matches(bwd.block_sparse_linear_dvalues(dy, x, crow, col, 16, 16), want)


@pytest.mark.usefixtures("stay_sparse")
def test_rows_beyond_32_bit_offsets(bwd, device):
    if device.type == "cuda":
        pytest.skip("memory is not allocated lazily on a GPU")
    dy, _, _, (crow, col, _) = operands(33, torch.ones(2, 3) > 0, (16, 16), torch.float16, device)
    x = far_apart_rows(33, 48)
    got = bwd.block_sparse_linear_dvalues(dy, x, crow, col, 16, 16)
    assert_matches(got, dvalues_oracle(dy, x, crow, col, (16, 16)))


@pytest.mark.parametrize(("m", "full"), [(0, True), (3, False)], ids=["no-rows", "no-blocks"])
def test_nothing_to_sum_gives_zeros(bwd, m, full, device):
    dy, x, _, bsr = operands(max(m, 1), torch.full((2, 3), full), (16, 16), torch.float32, device)
    dy, x = dy[:m], x[:m]
    assert not bwd.block_sparse_linear_dx(dy, *bsr, 48).any()
    dvalues = bwd.block_sparse_linear_dvalues(dy, x, *bsr[:2], 16, 16)
    assert dvalues.shape == bsr[2].shape
    assert not dvalues.any()
