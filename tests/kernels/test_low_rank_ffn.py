import os
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lada_kernels.variants import VariantName
from lada_ops.machine_code.compile import compile_launch
from lada_ops.machine_code.launches import recorded
from lada_ops.machine_code.targets import TARGETS
from tests.kernels.operands import (
    ACTIVATIONS,
    assert_matches,
    dense_oracle,
    factors,
    far_apart_rows,
    fenced,
    ffn_launcher,
    layer_norm,
    normal,
    row_strided,
    token_counts,
)

pytestmark = pytest.mark.usefixtures("poisoned_outputs")

FP32, FP16 = torch.float32, torch.float16
ONE_LAUNCH, SPLIT_K = VariantName.ONE_LAUNCH, VariantName.SPLIT_K
TWO_LAUNCHES, DENSE = VariantName.TWO_LAUNCHES, VariantName.DENSE
SHAPES = [  # M, N, F, K, R1, R2
    pytest.param((1, 16, 16, 16, 16, 16), id="one-row"),
    pytest.param((2, 1, 1, 1, 1, 1), id="all-ones"),
    pytest.param((17, 53, 131, 47, 13, 37), id="primes"),
    pytest.param((33, 80, 72, 48, 5, 100), id="nothing-divides"),
    pytest.param((32, 64, 128, 64, 64, 64), id="even"),
    pytest.param((18, 72, 100, 72, 96, 48), id="two-pieces"),
    pytest.param((5, 72, 140, 200, 128, 128), id="largest-ranks"),
]


@pytest.fixture(params=[ONE_LAUNCH, SPLIT_K, TWO_LAUNCHES], ids=str)
def fwd(request, kernels):
    """The launcher, by one variant."""
    return ffn_launcher(kernels, variant=kernels.variants.Variant(request.param))


@pytest.fixture
def split_k(kernels):
    def fwd(*args, tiles=None, **kwargs):
        variant = kernels.variants.Variant(SPLIT_K, tiles)
        return ffn_launcher(kernels)(*args, **kwargs, variant=variant)

    return fwd


def operands(shape, dtype, device) -> list[Any]:
    """x, u1, v1, bias1, u2, v2, bias2 and residual, for M, N, F, K, R1 and R2."""
    (m, n, f, k, rank1, rank2), kind = shape, {"dtype": dtype, "device": device}
    (u1, v1), (u2, v2) = factors(f, k, rank1, **kind), factors(n, f, rank2, **kind)
    x, residual = normal(m, k, **kind), normal(m, n, **kind)
    return [x, u1, v1, normal(f, **kind), u2, v2, normal(n, **kind), residual]


def oracle(*args: Any, activation="gelu", norm=None):
    x, u1, v1, bias1, u2, v2, bias2, *residual = args
    h = dense_oracle(x, u1.double() @ v1.double(), bias1, None, activation)
    return dense_oracle(h, u2.double() @ v2.double(), bias2, *residual, norm=norm)


@pytest.mark.parametrize("shape", SHAPES)
def test_is_two_dense_linears(fwd, shape, dtype, device):
    args = operands(shape, dtype, device)
    assert_matches(fwd(*args), oracle(*args))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation(fwd, activation, device):
    args = operands((19, 24, 70, 40, 7, 9), FP32, device)
    assert_matches(fwd(*args, activation), oracle(*args, activation=activation))


@pytest.mark.parametrize("left_out", [(3,), (6,), (7,), (3, 6, 7)], ids=str)
def test_bias1_bias2_and_residual_are_optional(fwd, left_out, device):
    given = operands((19, 24, 70, 40, 7, 9), FP32, device)
    args = [None if i in left_out else t for i, t in enumerate(given)]
    assert_matches(fwd(*args), oracle(*args))


@pytest.mark.parametrize("shape", SHAPES[2:6])
def test_norm(fwd, shape, dtype, device):
    args = operands(shape, dtype, device)
    norm = layer_norm(shape[1], dtype, device)
    y = fwd(*args, norm=norm)
    # a normalised row magnifies what its terms were rounded by
    atol = 2e-5 if dtype == FP32 else 0.03
    torch.testing.assert_close(y.double(), oracle(*args, norm=norm), rtol=0, atol=atol)


def test_exact_gelu_is_that_of_erf(fwd, device):
    """Ones for factors leave nothing but the gelu and its roundings."""
    x = torch.linspace(-4, 4, 257, device=device, dtype=FP16)[:, None]
    one = torch.ones(1, 1, device=device, dtype=FP16)
    args = x, one, one, None, one, one, None
    want = oracle(*args)
    spacing = 2.0**-11 * want.abs()
    fast, exact = ((fwd(*args, exact_gelu=e).double() - want).abs() for e in (False, True))
    assert (exact <= 1.01 * spacing + 1e-6).all()
    assert (fast <= 1.01 * spacing + 2e-4).all()
    assert (fast > 1.01 * spacing + 1e-6).any()


def test_reads_nothing_outside_its_operands(fwd, watch_reads, dtype, device):
    shape = (21, 37, 75, 45, 11, 50)
    args = operands(shape, dtype, device)
    norm = layer_norm(37, dtype, device)
    want = oracle(*args, norm=norm)
    x, *weights, residual = args
    x, residual = row_strided(x), row_strided(residual)
    weights = [fenced(t, float("nan")) for t in weights]
    norm = tuple(fenced(t, float("nan")) for t in norm[:2]) + norm[2:]
    watch_reads(x, *weights, residual, *norm[:2])
    y = fwd(x, *weights, residual, norm=norm)
    torch.testing.assert_close(y.double(), want, rtol=0, atol=2e-5 if dtype == FP32 else 0.03)


def test_rows_beyond_32_bit_offsets(fwd, device):
    if device.type == "cuda":
        pytest.skip("memory is not allocated lazily on a GPU")
    _, *args = operands((33, 16, 72, 16, 16, 16), FP16, device)
    x, residual = far_apart_rows(33, 16), far_apart_rows(33, 16)
    args = x, *args[:-1], residual
    assert_matches(fwd(*args), oracle(*args))


@pytest.mark.parametrize("shape", [(0, 12), (3, 0)], ids=["no-rows", "no-columns"])
def test_empty_output(fwd, shape, device):
    args = operands((*shape, 9, 8, 4, 2), FP32, device)
    assert fwd(*args).shape == shape


@pytest.mark.parametrize("norm", [True, False], ids=["norm", "no-norm"])
def test_every_token_count(kernels, norm, device):
    x, *args = operands((token_counts(device)[-1], 8, 72, 16, 16, 16), FP16, device)
    *args, residual = args
    norm = layer_norm(8, FP16, device) if norm else None
    # slow in the interpreter: there, the edges of the tiles
    edges = [0, 1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 300]
    for m in edges if device.type == "cpu" else token_counts(device):
        given = x[:m], *args, residual[:m]
        y = ffn_launcher(kernels)(*given, norm=norm)
        want = oracle(*given, norm=norm)
        torch.testing.assert_close(y.double(), want, rtol=0.03, atol=0.03)


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="nothing is compiled")
@pytest.mark.parametrize("variant", [ONE_LAUNCH, SPLIT_K])
def test_compiles_for_one_row(variant):
    """A size of 1 is a constant to the compiler, and not to the interpreter."""
    from lada_kernels import epilogue, low_rank_ffn, variants

    kernels = SimpleNamespace(epilogue=epilogue, low_rank_ffn=low_rank_ffn)
    args = operands((1, 768, 3072, 768, 64, 64), torch.bfloat16, "meta")
    norm = layer_norm(768, torch.bfloat16, "meta")
    with recorded() as launches:
        ffn_launcher(kernels)(*args, norm=norm, variant=variants.Variant(variant))
    assert len(launches) == (2 if variant == SPLIT_K else 1)
    for launch in launches:
        assert compile_launch(launch, TARGETS["sm_90"]).code


class TestSplitK:
    """d_ff over programs, whose partial sums a second launch adds up."""

    @pytest.mark.parametrize("most", [1, 2, 3, 100])
    @pytest.mark.parametrize("f", [320, 330])
    def test_covers_f(self, kernels, split_k, f, most, device, monkeypatch):
        """However many programs share F, each column of it counts once."""
        monkeypatch.setattr(kernels.low_rank_ffn, "_MAX_SPLITS", most)
        args = operands((3, 8, f, 16, 8, 8), FP32, device)
        assert_matches(split_k(*args), oracle(*args))

    def test_keeps_partial_sums_in_fp32(self, split_k, device):
        """Sums of large terms that cancel: in fp16 they would overflow."""
        kind = {"device": device, "dtype": FP16}
        one, x = torch.ones(1, 1, **kind), torch.full((2, 1), 4.0, **kind)
        v2 = torch.full((1, 256), 400.0, **kind)
        v2[:, 128:] *= -1
        args = x, one.expand(256, 1).contiguous(), one, None, one, v2, None
        assert (split_k(*args, activation="none") == 0).all()

    def test_same_result_every_time(self, split_k, device):
        args = operands((70, 24, 300, 40, 7, 9), FP16, device)
        assert torch.equal(split_k(*args), split_k(*args))

    def test_tiles_are_those_of_the_way(self, kernels, split_k, device, monkeypatch):
        """One that holds all of F leaves nothing to add up."""
        monkeypatch.setattr(kernels.low_rank_ffn, "_low_rank_ffn_sum_kernel", None)
        args = operands((50, 40, 100, 48, 16, 24), FP16, device)
        tiles = kernels.variants.TileConfig(16, 128, 16, num_warps=4, num_stages=2)
        assert_matches(split_k(*args, tiles=tiles), oracle(*args))


def test_dense_way_takes_the_dense_weights(kernels, device):
    args = operands((3, 16, 40, 24, 5, 7), FP32, device)
    x, u1, v1, bias1, u2, v2, bias2, residual = args
    norm = layer_norm(16, FP32, device)
    first, second = (torch.randn_like(u @ v) for u, v in ((u1, v1), (u2, v2)))
    y = ffn_launcher(kernels)(
        *args, norm=norm, dense=(first, second), variant=kernels.variants.Variant(DENSE)
    )
    h = dense_oracle(x, first, bias1, None, "gelu")
    assert_matches(y, dense_oracle(h, second, bias2, residual, norm=norm))


class TestChoose:
    """The rule where no table knows better."""

    @pytest.fixture
    def choose(self, kernels):
        def choose(m=8192, rank1=64, rank2=64, dtype=torch.bfloat16, dense=False):
            variant = kernels.low_rank_ffn.choose
            return variant(m, 768, 3072, 768, rank1, rank2, dtype, "norm", dense, -1).name

        return choose

    def test_few_tokens_split_d_ff(self, choose):
        assert choose(m=1024) == SPLIT_K
        assert choose(m=2048) == ONE_LAUNCH

    def test_few_tokens_take_the_dense_weights_where_they_are_kept(self, choose):
        assert choose(m=256, dense=True) == DENSE
        assert choose(m=512, dense=True) == SPLIT_K

    def test_a_large_rank_takes_two_launches(self, choose):
        assert choose(rank1=128, rank2=128) == ONE_LAUNCH
        assert choose(rank1=129) == choose(rank2=129) == TWO_LAUNCHES
        assert choose(m=16, rank1=129) == TWO_LAUNCHES

    def test_fp32_takes_two_launches(self, choose):
        assert choose(dtype=FP32) == TWO_LAUNCHES

    @pytest.mark.parametrize(
        ("rank", DENSE, "allowed"),
        [
            (128, False, (TWO_LAUNCHES, ONE_LAUNCH, SPLIT_K)),
            (129, False, (TWO_LAUNCHES,)),
            (129, True, (TWO_LAUNCHES, DENSE)),
        ],
    )
    def test_a_table_decides_where_there_is_one(self, kernels, rank, dense, allowed, monkeypatch):
        asked = []

        def fastest(*key):
            asked.append(key)
            return kernels.variants.Variant(TWO_LAUNCHES)

        module = kernels.low_rank_ffn
        monkeypatch.setattr(module, "fastest", fastest)
        module.choose.cache_clear()
        variant = module.choose(16, 768, 3072, 384, rank, 64, torch.bfloat16, "norm", dense, 0)
        module.choose.cache_clear()
        assert variant.name == TWO_LAUNCHES
        weight = kernels.weight_names.ffn_name(rank, 3072, 64)
        key = ("low_rank_ffn", torch.bfloat16, 384, 768, weight, "norm", 16, 0, allowed)
        assert asked == [key]

    def test_ranks_beyond_registers_are_computed(self, kernels, device):
        args = operands((3, 16, 40, 300, 150, 16), FP16, device)
        assert_matches(ffn_launcher(kernels)(*args), oracle(*args))
