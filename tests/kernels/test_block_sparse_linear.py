import functools

import pytest
import torch

from lada_kernels.variants import VariantName
from tests.kernels.operands import (
    ACTIVATIONS,
    TOLERANCE,
    assert_matches,
    dense_oracle,
    far_apart_rows,
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


def whole_packs(rows, packs, pack):
    """Block rows of 0, 1, 2, ... packs of blocks, and from 0 again, in random columns."""
    cols = torch.rand(rows, packs * pack).argsort(1)
    return cols < (torch.arange(rows) % (packs + 1) * pack)[:, None]


def heaviest_first(crow):
    return crow.diff().argsort(descending=True).int()


@pytest.fixture
def fwd(kernels):
    return launcher(kernels, "block_sparse_linear")


@pytest.fixture
def swap_ab(kernels, fwd):
    return functools.partial(fwd, variant=kernels.variants.Variant(VariantName.SWAP_AB))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_any_pattern_is_a_dense_linear(fwd, pattern, dtype, device):
    kind = {"dtype": dtype, "device": device}
    weight = sparse_weight(PATTERNS[pattern](), (16, 16), **kind)
    n, k = weight.shape
    x, bias, residual = normal(33, k, **kind), normal(n, **kind), normal(33, n, **kind)
    want = dense_oracle(x, weight, bias, residual, "gelu")
    assert_matches(fwd(x, *to_bsr(weight, (16, 16)), bias, residual, "gelu"), want)


@pytest.mark.parametrize("column_major", [True, False], ids=["column-major", "row-major"])
@pytest.mark.parametrize("cols", [16, 32, 64, 128])
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
    variant = kernels.variants.Variant("one_launch", kernels.variants.TileConfig(**tiles))
    y = fwd(x, *to_bsr(weight, (64, 32)), None, variant=variant)
    assert_matches(y, dense_oracle(x, weight))


@pytest.mark.parametrize("block", [(128, 16), (64, 32), (32, 32), (16, 64), (16, 16)], ids=str)
def test_rows_of_whole_packs_in_any_order(fwd, block, dtype, device):
    kind = {"dtype": dtype, "device": device}
    weight = sparse_weight(whole_packs(5, 3, 64 // block[1]), block, **kind)
    n, k = weight.shape
    x, bias, residual = normal(21, k, **kind), normal(n, **kind), normal(21, n, **kind)
    crow, col, values = to_bsr(weight, block)
    want = dense_oracle(x, weight, bias, residual, "gelu")
    for order in (heaviest_first(crow), torch.tensor([1, 4, 0, 3, 2], dtype=torch.int32)):
        y = fwd(x, crow, col, values, bias, residual, "gelu", order=order.to(device))
        assert_matches(y, want)


@pytest.mark.parametrize("block_k", [16, 64, 128])
def test_steps_of_any_depth_in_order(kernels, fwd, block_k, device):
    """A step deeper than a pack must mask again: the promise is of packs 64 wide."""
    kind = {"dtype": torch.float16, "device": device}
    weight = sparse_weight(whole_packs(4, 3, 4), (32, 16), **kind)
    x, bsr = normal(20, weight.shape[1], **kind), to_bsr(weight, (32, 16))
    tiles = {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": block_k, "num_warps": 4, "num_stages": 2}
    variant = kernels.variants.Variant("one_launch", kernels.variants.TileConfig(**tiles))
    y = fwd(x, *bsr, None, order=heaviest_first(bsr[0]), variant=variant)
    assert_matches(y, dense_oracle(x, weight))


@pytest.mark.parametrize("variant", ["one_launch", VariantName.SWAP_AB])
def test_whole_packs_read_nothing_outside_their_operands(
    kernels, fwd, watch_reads, variant, device
):
    kind = {"dtype": torch.float16, "device": device}
    weight = sparse_weight(whole_packs(4, 3, 4), (64, 16), **kind)
    x = normal(5, weight.shape[1], **kind)
    crow, col, values = to_bsr(weight, (64, 16))
    want, order = dense_oracle(x, weight), heaviest_first(crow)
    x = row_strided(x)
    crow, col = fenced(crow, col.numel() + 4), fenced(col, 12)
    watch_reads(x, crow, col, values, order)
    y = fwd(x, crow, col, values, None, order=order, variant=kernels.variants.Variant(variant))
    assert_matches(y, want)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("m", [1, 17, 33, 63])
def test_weights_on_the_left(swap_ab, pattern, m, dtype, device):
    kind = {"dtype": dtype, "device": device}
    weight = sparse_weight(PATTERNS[pattern](), (64, 16), **kind)
    n, k = weight.shape
    x, bias, residual = normal(m, k, **kind), normal(n, **kind), normal(m, n, **kind)
    want = dense_oracle(x, weight, bias, residual, "gelu")
    assert_matches(swap_ab(x, *to_bsr(weight, (64, 16)), bias, residual, "gelu"), want)


@pytest.mark.parametrize("column_major", [True, False], ids=["column-major", "row-major"])
@pytest.mark.parametrize("block", [(64, 32), (128, 16), (128, 128)], ids=str)
def test_weights_on_the_left_of_any_block(swap_ab, block, column_major, device):
    kind = {"dtype": torch.float16, "device": device}
    weight = sparse_weight(random(2, 5), block, **kind)
    x = normal(3, weight.shape[1], **kind)
    assert_matches(
        swap_ab(x, *to_bsr(weight, block, column_major), None), x.double() @ weight.double().T
    )


def test_norm(fwd, dtype, device):
    kind = {"dtype": dtype, "device": device}
    weight = sparse_weight(random(3, 5), (16, 16), **kind)
    x, bias, residual = normal(19, 80, **kind), normal(48, **kind), normal(19, 48, **kind)
    norm = layer_norm(48, **kind)
    want = dense_oracle(x, weight, bias, residual, "relu", norm)
    y = fwd(x, *to_bsr(weight, (16, 16)), bias, residual, "relu", norm)
    torch.testing.assert_close(
        y.double(), want, rtol=3 * TOLERANCE[dtype], atol=3 * TOLERANCE[dtype]
    )


@pytest.mark.parametrize("exact", [True, False], ids=["erf", "polynomial"])
def test_gelu_is_as_exact_as_asked(fwd, exact, device):
    """Arguments whose gelu is so small that fp16 rounds it by less than 1e-6."""
    bias = torch.linspace(-6, -4, 64, dtype=torch.float64).to(device, torch.float16)
    x, crow = bias.new_zeros(1, 16), torch.tensor([0, 0], dtype=torch.int32, device=device)
    y = fwd(x, crow, crow[:0], x.new_zeros(0, 64, 16), bias, None, "gelu", exact_gelu=exact)
    error = (y.double() - torch.nn.functional.gelu(bias.double())).abs().max()
    assert error <= 2e-4
    assert (error <= 1e-6) == exact


def test_dense_way_takes_the_dense_weight(kernels, fwd, device):
    kind = {"dtype": torch.float32, "device": device}
    weight = sparse_weight(random(2, 3), (16, 16), **kind)
    x, residual, dense = normal(5, 48, **kind), normal(5, 32, **kind), normal(32, 48, **kind)
    variant = kernels.variants.Variant("dense")
    y = fwd(x, *to_bsr(weight, (16, 16)), None, residual, "tanh", dense=dense, variant=variant)
    assert_matches(y, dense_oracle(x, dense, None, residual, "tanh"))


@pytest.mark.exhaustive
def test_every_token_count(fwd, device):
    kind = {"dtype": torch.float16, "device": device}
    weight = sparse_weight(torch.ones(1, 4) > 0, (16, 16), **kind)
    bsr = to_bsr(weight, (16, 16))
    for m in token_counts(device):
        x, order = normal(m, 64, **kind), heaviest_first(bsr[0]) if m % 2 else None
        assert_matches(fwd(x, *bsr, None, order=order), dense_oracle(x, weight))


def test_every_few_tokens_with_the_weights_on_the_left(swap_ab, device):
    kind = {"dtype": torch.float16, "device": device}
    weight = sparse_weight(torch.ones(1, 4) > 0, (64, 16), **kind)
    bsr = to_bsr(weight, (64, 16))
    for m in range(1, 70):
        x = normal(m, 64, **kind)
        assert_matches(swap_ab(x, *bsr, None), dense_oracle(x, weight))


def test_no_rows(fwd, device):
    kind = {"dtype": torch.float32, "device": device}
    weight = sparse_weight(random(2, 3), (16, 16), **kind)
    assert fwd(normal(0, 48, **kind), *to_bsr(weight, (16, 16)), None).shape == (0, 32)


def test_no_columns(fwd, device):
    crow = torch.zeros(1, dtype=torch.int32, device=device)
    x = torch.zeros(3, 48, device=device)
    assert fwd(x, crow, crow[:0], x.new_zeros(0, 16, 16), None).shape == (3, 0)


class TestChoose:
    @pytest.fixture
    def choose(self, kernels):
        """The name of the variant for 768 -> 3072 with blocks `rows` x 16 at a density."""

        def name(m, rows, density, dense=True, dtype=torch.float16):
            nnz = round(density * 768 * 3072 / rows / 16)
            choose = kernels.block_sparse_linear.choose
            return choose(m, 3072, 768, rows, 16, nnz, dtype, "fused", dense, -1).name

        return name

    @pytest.mark.parametrize(("rows", "break_even"), [(128, 0.5), (64, 0.25), (32, 0.125)])
    def test_full_weights_are_multiplied_dense(self, choose, rows, break_even):
        assert choose(8192, rows, break_even * 1.1) == "dense"
        assert choose(8192, rows, break_even * 0.9) == "one_launch"

    def test_no_dense_product_without_the_dense_weight(self, choose):
        assert choose(8192, 128, 0.9, dense=False) == "one_launch"

    @pytest.mark.parametrize(
        ("m", "variant"), [(1, VariantName.SWAP_AB), (64, VariantName.SWAP_AB), (128, "one_launch")]
    )
    def test_few_tokens_have_the_weights_on_the_left(self, choose, m, variant):
        assert choose(m, 128, 0.1) == variant

    def test_low_blocks_stay_on_the_right(self, choose):
        assert choose(16, 32, 0.1) == "one_launch"

    def test_fp32_has_no_tensor_cores_to_fill(self, choose):
        assert choose(16, 128, 0.1, dtype=torch.float32) == "one_launch"

    def test_a_table_decides_where_there_is_one(self, kernels, monkeypatch):
        module = kernels.block_sparse_linear
        measured = kernels.variants.Variant(VariantName.SWAP_AB)
        monkeypatch.setattr(module, "fastest", lambda *key: measured)
        module.choose.cache_clear()
        assert module.choose(8192, 64, 64, 64, 16, 4, torch.float16, "plain", False, -1) is measured
        module.choose.cache_clear()
