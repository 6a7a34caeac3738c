import pytest
import torch

from tests.kernels.operands import (
    ACTIVATIONS,
    assert_matches,
    dense_oracle,
    far_apart_rows,
    fenced,
    normal,
    row_strided,
    sparse_weight,
    to_bsr,
)

pytestmark = pytest.mark.usefixtures("poisoned_outputs")


def random(rows, cols, density=0.4):
    return torch.rand(rows, cols) < density


def unbalanced(rows, cols):
    """Block row i has i blocks, the last all of them."""
    pattern = torch.arange(cols) < torch.arange(rows)[:, None]
    pattern[-1] = True
    return pattern


PATTERNS = {
    "random": lambda: random(3, 11),
    "empty-rows": lambda: random(4, 9) & torch.tensor([True, False, True, False])[:, None],
    "no-blocks": lambda: torch.zeros(3, 5, dtype=torch.bool),
    "full": lambda: torch.ones(2, 7, dtype=torch.bool),
    "unbalanced": lambda: unbalanced(5, 13),
    "one-block": lambda: torch.ones(1, 1, dtype=torch.bool),
    "last-column-only": lambda: torch.arange(9).expand(2, 9) == 8,
}


@pytest.fixture
def fwd(kernels):
    return kernels.block_sparse_linear.block_sparse_linear_fwd


@pytest.mark.parametrize("pattern", PATTERNS)
def test_any_pattern_is_a_dense_linear(fwd, pattern, dtype, device):
    kind = {"dtype": dtype, "device": device}
    weight = sparse_weight(PATTERNS[pattern](), (16, 16), **kind)
    n, k = weight.shape
    x, bias, residual = normal(33, k, **kind), normal(n, **kind), normal(33, n, **kind)
    want = dense_oracle(x, weight, bias, residual, "gelu")
    assert_matches(fwd(x, *to_bsr(weight, (16, 16)), bias, residual, "gelu"), want)


@pytest.mark.parametrize("column_major", [True, False], ids=["column-major", "row-major"])
@pytest.mark.parametrize("cols", [16, 32, 64])
@pytest.mark.parametrize("rows", [16, 32, 64, 128])
def test_any_block_shape(fwd, rows, cols, column_major, device):
    kind = {"dtype": torch.float16, "device": device}
    weight = sparse_weight(random(2, 7), (rows, cols), **kind)
    x = normal(3, weight.shape[1], **kind)
    bsr = to_bsr(weight, (rows, cols), column_major)
    assert_matches(fwd(x, *bsr, None), dense_oracle(x, weight))


@pytest.mark.parametrize("m", [1, 2, 17, 64, 131])
def test_any_number_of_rows(fwd, m, dtype, device):
    kind = {"dtype": dtype, "device": device}
    weight = sparse_weight(random(2, 6), (32, 16), **kind)
    x = normal(m, weight.shape[1], **kind)
    assert_matches(fwd(x, *to_bsr(weight, (32, 16)), None), dense_oracle(x, weight))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("has_residual", [True, False], ids=["residual", "no-residual"])
@pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "no-bias"])
def test_epilogue(fwd, has_bias, has_residual, activation, device):
    kind = {"dtype": torch.float32, "device": device}
    weight = sparse_weight(random(2, 5), (16, 16), **kind)
    x = normal(19, 80, **kind)
    bias = normal(32, **kind) if has_bias else None
    residual = normal(19, 32, **kind) if has_residual else None
    want = dense_oracle(x, weight, bias, residual, activation)
    assert_matches(fwd(x, *to_bsr(weight, (16, 16)), bias, residual, activation), want)


@pytest.mark.parametrize("pattern", ["random", "unbalanced", "empty-rows"])
def test_reads_nothing_outside_its_operands(fwd, watch_reads, pattern, dtype, device):
    kind = {"dtype": dtype, "device": device}
    weight = sparse_weight(PATTERNS[pattern](), (16, 16), **kind)
    n, k = weight.shape
    x, bias, residual = normal(21, k, **kind), normal(n, **kind), normal(21, n, **kind)
    crow, col, values = to_bsr(weight, (16, 16), column_major=False)
    want = dense_oracle(x, weight, bias, residual)
    x, residual = row_strided(x), row_strided(residual)
    bias, values = fenced(bias, float("nan")), fenced(values, float("nan"))
    # past the end of a row of x, where the NaN are
    crow, col = fenced(crow, col.numel() + 4), fenced(col, k // 16)
    watch_reads(x, crow, col, values, bias, residual)
    assert_matches(fwd(x, crow, col, values, bias, residual), want)


def test_blocks_of_other_rows_are_not_read(fwd, device):
    """A NaN weight spoils its own block row only: packs do not reach into the next row."""
    kind = {"dtype": torch.float32, "device": device}
    weight = sparse_weight(torch.ones(2, 5, dtype=torch.bool), (16, 16), **kind)
    crow, col, values = to_bsr(weight, (16, 16))
    values[5:] = float("nan")
    x = normal(3, 80, **kind)
    assert_matches(fwd(x, crow, col, values, None)[:, :16], dense_oracle(x, weight)[:, :16])


def test_columns_without_blocks_are_not_read(fwd, device):
    kind = {"dtype": torch.float32, "device": device}
    weight = sparse_weight(PATTERNS["last-column-only"](), (16, 16), **kind)
    x = normal(3, weight.shape[1], **kind)
    want = dense_oracle(x, weight)
    x[:, :-16] = float("nan")
    assert_matches(fwd(x, *to_bsr(weight, (16, 16)), None), want)


def test_rows_beyond_32_bit_offsets(fwd, device):
    if device.type == "cuda":
        pytest.skip("memory is not allocated lazily on a GPU")
    weight = sparse_weight(random(2, 3), (16, 16), torch.float16, device)
    x = far_apart_rows(33, 48)
    assert_matches(fwd(x, *to_bsr(weight, (16, 16)), None), dense_oracle(x, weight))


def test_tiles_narrower_than_a_block(kernels, fwd, device):
    kind = {"dtype": torch.float16, "device": device}
    weight = sparse_weight(random(2, 6), (64, 32), **kind)
    x = normal(20, weight.shape[1], **kind)
    tiles = {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 32, "num_warps": 4, "num_stages": 2}
    way = kernels.tuning.Way("one_launch", kernels.tuning.TileConfig(**tiles))
    y = fwd(x, *to_bsr(weight, (64, 32)), None, way=way)
    assert_matches(y, dense_oracle(x, weight))


def test_no_rows(fwd, device):
    kind = {"dtype": torch.float32, "device": device}
    weight = sparse_weight(random(2, 3), (16, 16), **kind)
    assert fwd(normal(0, 48, **kind), *to_bsr(weight, (16, 16)), None).shape == (0, 32)
