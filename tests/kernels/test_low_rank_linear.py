import pytest
import torch

from tests.kernels.operands import (
    ACTIVATIONS,
    assert_matches,
    dense_oracle,
    factors,
    far_apart_rows,
    fenced,
    launcher,
    layer_norm,
    normal,
    row_strided,
    token_counts,
)

pytestmark = pytest.mark.usefixtures("poisoned_outputs")

SHAPES = [
    pytest.param(1, 16, 16, 16, id="one-row"),
    pytest.param(2, 1, 1, 1, id="all-ones"),
    pytest.param(17, 53, 101, 13, id="primes"),
    pytest.param(33, 80, 48, 5, id="nothing-divides"),
    pytest.param(64, 128, 192, 64, id="even"),
    pytest.param(70, 136, 72, 96, id="two-pieces"),
    pytest.param(19, 40, 100, 90, id="two-pieces-padded"),
    pytest.param(5, 72, 200, 256, id="largest-rank"),
    pytest.param(3, 40, 64, 161, id="odd-large-rank"),
]


@pytest.fixture(params=["one_launch", "two_launches"])
def fwd(request, kernels):
    """The launcher, by one variant."""
    return launcher(kernels, "low_rank_linear", variant=kernels.variants.Variant(request.param))


@pytest.fixture
def one_launch(kernels):
    def fwd(*args, tiles=None, **kwargs):
        variant = kernels.variants.Variant("one_launch", tiles)
        return launcher(kernels, "low_rank_linear")(*args, **kwargs, variant=variant)

    return fwd


def grouped(u, v, groups):
    """The dense weight of `groups` pairs of factors."""
    pairs = zip(u.double().chunk(groups), v.double().chunk(groups), strict=True)
    return torch.cat([u @ v for u, v in pairs])


@pytest.mark.parametrize(("m", "n", "k", "rank"), SHAPES)
def test_is_a_dense_linear(fwd, m, n, k, rank, dtype, device):
    kind = {"dtype": dtype, "device": device}
    x, bias, residual = normal(m, k, **kind), normal(n, **kind), normal(m, n, **kind)
    u, v = factors(n, k, rank, **kind)
    want = dense_oracle(x, u.double() @ v.double(), bias, residual, "gelu")
    assert_matches(fwd(x, u, v, bias, residual, "gelu"), want)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("has_residual", [True, False], ids=["residual", "no-residual"])
@pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "no-bias"])
def test_epilogue(fwd, has_bias, has_residual, activation, device):
    kind = {"dtype": torch.float32, "device": device}
    x, (u, v) = normal(19, 40, **kind), factors(24, 40, 7, **kind)
    bias = normal(24, **kind) if has_bias else None
    residual = normal(19, 24, **kind) if has_residual else None
    want = dense_oracle(x, u.double() @ v.double(), bias, residual, activation)
    assert_matches(fwd(x, u, v, bias, residual, activation), want)


@pytest.mark.parametrize(("m", "n", "k", "rank"), SHAPES[2:6])
def test_norm(fwd, m, n, k, rank, dtype, device):
    kind = {"dtype": dtype, "device": device}
    x, bias, residual = normal(m, k, **kind), normal(n, **kind), normal(m, n, **kind)
    (u, v), norm = factors(n, k, rank, **kind), layer_norm(n, **kind)
    want = dense_oracle(x, u.double() @ v.double(), bias, residual, norm=norm)
    y = fwd(x, u, v, bias, residual, norm=norm)
    # a normalised row magnifies what its terms were rounded by
    torch.testing.assert_close(y.double(), want, rtol=0, atol=2e-5 if dtype.itemsize == 4 else 0.02)


@pytest.mark.parametrize("norm", [True, False], ids=["norm", "no-norm"])
@pytest.mark.parametrize(
    ("m", "n", "k", "rank"), [(1, 3, 5, 2), (37, 99, 80, 24), (64, 192, 64, 8)]
)
def test_groups_are_pairs_side_by_side(fwd, kernels, m, n, k, rank, norm, device):
    kind = {"dtype": torch.float32, "device": device}
    x, bias, residual = normal(m, k, **kind), normal(n, **kind), normal(m, n, **kind)
    u, v = factors(n, k, rank, **kind)[0], factors(3, k, 3 * rank, **kind)[1]
    args = x, u, v, bias, residual, "gelu"
    want = dense_oracle(x, grouped(u, v, 3), bias, residual, "gelu")
    if norm:
        norm = layer_norm(n, **kind)
        want = dense_oracle(x, grouped(u, v, 3), bias, residual, "gelu", norm)
        chosen = launcher(kernels, "low_rank_linear")
        assert_matches(chosen(*args, norm=norm, groups=3), want)
    else:
        assert_matches(fwd(*args, groups=3), want)


def test_reads_nothing_outside_its_operands(fwd, watch_reads, dtype, device):
    kind = {"dtype": dtype, "device": device}
    x, bias, residual = normal(21, 45, **kind), normal(37, **kind), normal(21, 37, **kind)
    u, v = factors(37, 45, 11, **kind)
    want = dense_oracle(x, u.double() @ v.double(), bias, residual)
    x, residual = row_strided(x), row_strided(residual)
    u, v, bias = (fenced(t, float("nan")) for t in (u, v, bias))
    watch_reads(x, u, v, bias, residual)
    assert_matches(fwd(x, u, v, bias, residual), want)


def test_norm_reads_nothing_outside_its_operands(one_launch, watch_reads, device):
    kind = {"dtype": torch.float32, "device": device}
    x, (u, v), norm = normal(3, 20, **kind), factors(70, 20, 5, **kind), layer_norm(70, **kind)
    want = dense_oracle(x, u.double() @ v.double(), norm=norm)
    u, v = (fenced(t, float("nan")) for t in (u, v))
    norm = tuple(fenced(t, float("nan")) for t in norm[:2]) + norm[2:]
    watch_reads(x, u, v, *norm[:2])
    assert_matches(one_launch(x, u, v, None, norm=norm), want)


def test_rows_beyond_32_bit_offsets(fwd, device):
    if device.type == "cuda":
        pytest.skip("memory is not allocated lazily on a GPU")
    x, (u, v) = far_apart_rows(33, 16), factors(16, 16, 16, torch.float16, device)
    assert_matches(fwd(x, u, v, None), dense_oracle(x, u.double() @ v.double()))


def test_output_beyond_32_bit_offsets(one_launch, device):
    if device.type == "cpu":
        pytest.skip("the interpreter would take hours")
    kind = {"dtype": torch.float16, "device": device}
    x, (u, v) = normal(2**31 // 3072 + 70, 64, **kind), factors(3072, 64, 16, **kind)
    y = one_launch(x, u, v, None)
    assert_matches(y[-70:], dense_oracle(x[-70:], u.double() @ v.double()))


@pytest.mark.parametrize("shape", [(0, 12), (3, 0)], ids=["no-rows", "no-columns"])
def test_empty_output(kernels, shape, device):
    (m, n), kind = shape, {"dtype": torch.float32, "device": device}
    fwd = launcher(kernels, "low_rank_linear")
    assert fwd(normal(m, 8, **kind), *factors(n, 8, 4, **kind), None).shape == shape


@pytest.mark.parametrize("m", [1, 100, 300])
def test_split_covers_n(kernels, one_launch, m, device, monkeypatch):
    """However few programs are asked for, each column is computed."""
    monkeypatch.setattr(kernels.programs, "MIN_PROGRAMS", 12)
    kind = {"dtype": torch.float32, "device": device}
    x, (u, v) = normal(m, 16, **kind), factors(330, 16, 8, **kind)
    assert_matches(one_launch(x, u, v, None), dense_oracle(x, u.double() @ v.double()))


@pytest.mark.exhaustive
@pytest.mark.parametrize("norm", [True, False], ids=["norm", "no-norm"])
def test_every_token_count(kernels, norm, device):
    kind = {"dtype": torch.float16, "device": device}
    (u, v), bias = factors(24, 16, 16, **kind), normal(24, **kind)
    norm = layer_norm(24, **kind) if norm else None
    fwd = launcher(kernels, "low_rank_linear")
    # a norm is slow in the interpreter: there, the tiles' edges and a few counts beyond
    some = [*range(35), 64, 65, 127, 129, 300, 4736]
    for m in some if norm and device.type == "cpu" else token_counts(device):
        x = normal(m, 16, **kind)
        want = dense_oracle(x, u.double() @ v.double(), bias, norm=norm)
        y = fwd(x, u, v, bias, norm=norm)
        torch.testing.assert_close(y.double(), want, rtol=0.02, atol=0.02)


def test_tiles_are_those_of_the_way(kernels, one_launch, device):
    kind = {"dtype": torch.float16, "device": device}
    x, (u, v) = normal(50, 48, **kind), factors(70, 48, 16, **kind)
    tiles = kernels.variants.TileConfig(16, 32, 16, num_warps=4, num_stages=2)
    assert_matches(one_launch(x, u, v, None, tiles=tiles), dense_oracle(x, u.double() @ v.double()))


def test_dense_way_takes_the_dense_weight(kernels, device):
    kind = {"dtype": torch.float32, "device": device}
    x, (u, v), weight = normal(3, 8, **kind), factors(5, 8, 2, **kind), normal(5, 8, **kind)
    variant = kernels.variants.Variant("dense")
    y = launcher(kernels, "low_rank_linear", variant=variant)(x, u, v, None, dense=weight)
    assert_matches(y, dense_oracle(x, weight))


class TestChoose:
    """The rule where no table knows better."""

    @pytest.fixture
    def choose(self, kernels):
        def choose(m=2048, rank=64, groups=1, dtype=torch.bfloat16, epilogue="fused", dense=False):
            variant = kernels.low_rank_linear.choose
            return variant(m, 768, 768, rank, groups, dtype, epilogue, dense, -1).name

        return choose

    def test_few_tokens_take_the_dense_weight_where_it_is_kept(self, choose):
        assert choose(m=256, dense=True) == "dense"
        assert choose(m=512, dense=True) == "one_launch"
        assert choose(m=256, dense=False) == "one_launch"

    def test_large_ranks_take_two_launches(self, choose):
        assert choose(rank=128) == "one_launch"
        assert choose(rank=192) == "two_launches"

    def test_many_tokens_without_epilogue_take_two_launches(self, choose):
        assert choose(m=16384, rank=64, epilogue="plain") == "two_launches"
        assert choose(m=8192, rank=64, epilogue="plain") == "one_launch"

    def test_fp32_takes_two_launches(self, choose):
        assert choose(dtype=torch.float32) == "two_launches"

    def test_a_norm_over_groups_takes_two_launches(self, choose):
        assert choose(groups=3, epilogue="norm") == "two_launches"
        assert choose(groups=3) == choose(epilogue="norm") == "one_launch"

    def test_a_table_decides_where_there_is_one(self, kernels, monkeypatch):
        asked = []

        def fastest(*key):
            asked.append(key)
            return kernels.variants.Variant("two_launches")

        module = kernels.low_rank_linear
        monkeypatch.setattr(module, "fastest", fastest)
        module.choose.cache_clear()
        variant = module.choose(16, 3072, 768, 64, 3, torch.bfloat16, "fused", True, 0)
        module.choose.cache_clear()
        assert variant.name == "two_launches"
        ((*key, allowed),) = asked
        assert key == ["low_rank_linear", torch.bfloat16, 768, 3072, "r64x3", "fused", 16, 0]
        assert set(allowed) == {"one_launch", "two_launches", "dense"}
