import pytest
import torch

from lada_kernels.variants import VariantName
from tests.kernels.operands import (
    ACTIVATIONS,
    TOLERANCE,
    assert_matches,
    dense_oracle,
    factors,
    fenced,
    launcher,
    layer_norm,
    normal,
    row_strided,
    sparse_weight,
    to_bsr,
    token_counts,
)

pytestmark = pytest.mark.usefixtures("poisoned_outputs")


@pytest.fixture
def fwd(kernels):
    return launcher(kernels, "sparse_low_rank_linear")


def operands(m, pattern, block, rank, dtype, device):
    """x, u, v, the sparse part as dense, and the dense fp64 weight of both together."""
    sparse = sparse_weight(pattern, block, dtype, device)
    n, k = sparse.shape
    u, v = factors(n, k, rank, dtype, device)
    x = normal(m, k, dtype=dtype, device=device)
    return x, u, v, sparse, u.double() @ v.double() + sparse.double()


@pytest.mark.parametrize("rank", [1, 5, 16, 32, 64, 96, 300])
def test_any_rank_is_a_dense_linear(fwd, rank, dtype, device):
    pattern = torch.rand(3, 7) < 0.4
    x, u, v, sparse, weight = operands(17, pattern, (32, 16), rank, dtype, device)
    bias, residual = (normal(*s, dtype=dtype, device=device) for s in [(96,), (17, 96)])
    want = dense_oracle(x, weight, bias, residual, "gelu")
    assert_matches(fwd(x, u, v, *to_bsr(sparse, (32, 16)), bias, residual, "gelu"), want)


@pytest.mark.parametrize(
    "pattern",
    [
        pytest.param(torch.zeros(3, 5, dtype=torch.bool), id="no-blocks"),
        pytest.param(torch.ones(2, 7, dtype=torch.bool), id="full"),
        pytest.param(torch.arange(13) < torch.tensor([[0], [13], [2]]), id="unbalanced"),
    ],
)
def test_any_pattern(fwd, pattern, dtype, device):
    x, u, v, sparse, weight = operands(33, pattern, (16, 16), 8, dtype, device)
    assert_matches(fwd(x, u, v, *to_bsr(sparse, (16, 16)), None), dense_oracle(x, weight))


@pytest.mark.parametrize("column_major", [True, False], ids=["column-major", "row-major"])
@pytest.mark.parametrize("block", [(16, 64), (64, 32), (128, 16)], ids=str)
def test_any_block_shape(fwd, block, column_major, device):
    pattern = torch.rand(2, 5) < 0.5
    x, u, v, sparse, weight = operands(2, pattern, block, 24, torch.float16, device)
    bsr = to_bsr(sparse, block, column_major)
    assert_matches(fwd(x, u, v, *bsr, None), dense_oracle(x, weight))


@pytest.mark.parametrize("m", [1, 65])
def test_any_number_of_rows(fwd, m, dtype, device):
    x, u, v, sparse, weight = operands(m, torch.rand(2, 5) < 0.5, (16, 32), 12, dtype, device)
    assert_matches(fwd(x, u, v, *to_bsr(sparse, (16, 32)), None), dense_oracle(x, weight))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("has_residual", [True, False], ids=["residual", "no-residual"])
@pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "no-bias"])
def test_epilogue(fwd, has_bias, has_residual, activation, device):
    kind = {"dtype": torch.float32, "device": device}
    x, u, v, sparse, weight = operands(19, torch.rand(2, 5) < 0.5, (16, 16), 6, **kind)
    bias = normal(32, **kind) if has_bias else None
    residual = normal(19, 32, **kind) if has_residual else None
    want = dense_oracle(x, weight, bias, residual, activation)
    assert_matches(fwd(x, u, v, *to_bsr(sparse, (16, 16)), bias, residual, activation), want)


def test_reads_nothing_outside_its_operands(fwd, watch_reads, dtype, device):
    kind = {"dtype": dtype, "device": device}
    x, u, v, sparse, weight = operands(21, torch.rand(3, 7) < 0.5, (16, 16), 11, **kind)
    bias, residual = normal(48, **kind), normal(21, 48, **kind)
    crow, col, values = to_bsr(sparse, (16, 16), column_major=False)
    want = dense_oracle(x, weight, bias, residual)
    x, residual = row_strided(x), row_strided(residual)
    u, v, bias, values = (fenced(t, float("nan")) for t in (u, v, bias, values))
    # past the end of a row of x, where the NaN are
    crow, col = fenced(crow, col.numel() + 4), fenced(col, 7)
    watch_reads(x, u, v, crow, col, values, bias, residual)
    assert_matches(fwd(x, u, v, crow, col, values, bias, residual), want)


def whole_rows(*packs):
    """Block rows of so many packs of four blocks each, in random columns."""
    cols = torch.rand(len(packs), 12).argsort(1)
    return cols < torch.tensor(packs)[:, None] * 4


@pytest.mark.parametrize("m", [5, 70])
@pytest.mark.parametrize("variant", ["one_launch", VariantName.SWAP_AB])
@pytest.mark.parametrize("rank", [7, 32, 64])
def test_rows_of_whole_packs_in_any_order(kernels, fwd, rank, variant, m, device):
    pattern, block = whole_rows(1, 0, 3, 2), (64, 16)
    x, u, v, sparse, weight = operands(m, pattern, block, rank, torch.float16, device)
    residual = normal(m, 256, dtype=torch.float16, device=device)
    order = torch.tensor([2, 3, 0, 1], dtype=torch.int32, device=device)
    given = x, u, v, *to_bsr(sparse, block), None, residual
    y = fwd(*given, order=order, variant=kernels.variants.Variant(variant))
    assert_matches(y, dense_oracle(x, weight, None, residual))


@pytest.mark.parametrize("variant", ["one_launch", VariantName.SWAP_AB])
@pytest.mark.parametrize("rank", [7, 32])
@pytest.mark.parametrize("m", [1, 33])
def test_groups_are_pairs_side_by_side(kernels, fwd, m, rank, variant, device):
    kind = {"dtype": torch.float16, "device": device}
    pattern, block = whole_rows(1, 0, 3, 2, 2, 1), (64, 16)
    x, _, _, sparse, _ = operands(m, pattern, block, rank, **kind)
    pairs = [factors(128, x.shape[1], rank, **kind) for _ in range(3)]
    u, v = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    weight = torch.cat([a.double() @ b.double() for a, b in pairs]) + sparse.double()
    order = torch.tensor([2, 3, 4, 0, 5, 1], dtype=torch.int32, device=device)
    given = x, u, v, *to_bsr(sparse, block), normal(384, **kind)
    y = fwd(*given, groups=3, order=order, variant=kernels.variants.Variant(variant))
    assert_matches(y, dense_oracle(x, weight, given[-1]))


def test_norm(fwd, dtype, device):
    kind = {"dtype": dtype, "device": device}
    x, u, v, sparse, weight = operands(19, torch.rand(3, 5) < 0.5, (16, 16), 6, **kind)
    bias, norm = normal(48, **kind), layer_norm(48, **kind)
    y = fwd(x, u, v, *to_bsr(sparse, (16, 16)), bias, None, "relu", norm)
    bound = 3 * TOLERANCE[dtype]
    want = dense_oracle(x, weight, bias, None, "relu", norm)
    torch.testing.assert_close(y.double(), want, rtol=bound, atol=bound)


def test_dense_way_takes_the_dense_weight(kernels, fwd, device):
    kind = {"dtype": torch.float32, "device": device}
    x, u, v, sparse, _ = operands(5, torch.rand(2, 3) < 0.5, (16, 16), 4, **kind)
    dense, variant = normal(32, 48, **kind), kernels.variants.Variant("dense")
    y = fwd(x, u, v, *to_bsr(sparse, (16, 16)), None, None, "tanh", dense=dense, variant=variant)
    assert_matches(y, dense_oracle(x, dense, None, None, "tanh"))


@pytest.mark.exhaustive
def test_every_token_count(fwd, device):
    pattern = torch.ones(1, 4) > 0
    largest = token_counts(device)[-1]
    x, u, v, sparse, weight = operands(largest, pattern, (16, 16), 16, torch.float16, device)
    bsr = to_bsr(sparse, (16, 16))
    for m in token_counts(device):
        assert_matches(fwd(x[:m], u, v, *bsr, None), dense_oracle(x[:m], weight))


@pytest.mark.parametrize(
    ("rank", "step"), [(16, 32), (32, 32), (48, 64), (64, 64), (96, 32), (128, 64), (160, 32)]
)
def test_ranks_are_padded_little(kernels, rank, step):
    assert kernels.sparse_low_rank_linear.rank_step(rank, torch.float16) == step


@pytest.mark.parametrize(("rank", "variant"), [(64, "one_launch"), (256, "dense")])
def test_the_rank_counts_against_a_dense_product(kernels, rank, variant):
    """768 -> 3072 with 30 % of 128x16 blocks: .6 of a dense product, and the factors' share."""
    nnz = round(0.3 * 768 * 3072 / 128 / 16)
    choose = kernels.sparse_low_rank_linear.choose
    given = 8192, 3072, 768, rank, 1, 128, 16, nnz, torch.float16, "fused", True, -1
    assert choose(*given).name == variant


def test_each_group_reads_x_for_its_factors(kernels):
    nnz = round(0.3 * 768 * 3072 / 128 / 16)
    choose = kernels.sparse_low_rank_linear.choose
    given = 128, 16, nnz, torch.float16, "fused", True, -1
    assert choose(8192, 3072, 768, 192, 1, *given).name == "one_launch"
    assert choose(8192, 3072, 768, 192, 3, *given).name == "dense"


def test_no_rows(fwd, device):
    pattern = torch.ones(2, 3, dtype=torch.bool)
    x, u, v, sparse, _ = operands(0, pattern, (16, 16), 4, torch.float32, device)
    assert fwd(x, u, v, *to_bsr(sparse, (16, 16)), None).shape == (0, 32)
