import pytest
import torch

from tests.kernels.operands import (
    assert_matches,
    factors,
    far_apart_rows,
    fenced,
    normal,
    row_strided,
)

pytestmark = pytest.mark.usefixtures("poisoned_outputs")

SIZES = [  # rows, out, in, rank
    (1, 32, 32, 16),
    (7, 33, 31, 5),
    (33, 48, 80, 16),
    (37, 100, 77, 24),
    (65, 64, 96, 64),
    (70, 77, 130, 72),
    (32, 64, 64, 5),
    (64, 128, 64, 72),
]
TILES = {"BLOCK_M": 32, "BLOCK_N": 32, "BLOCK_K": 64, "num_warps": 4, "num_stages": 2}


@pytest.fixture
def bwd(kernels):
    return kernels.low_rank_linear_bwd


@pytest.fixture
def tiles(kernels):
    return kernels.variants.TileConfig(**TILES)


@pytest.fixture
def one_launch(kernels, tiles):
    return kernels.variants.Variant("one_launch", tiles)


def dx_operands(m, n, k, rank, *kind, groups=1):
    """dy, u and v, scaled for gradients of the size of dy."""
    pairs = [factors(k, n // groups, rank, *kind) for _ in range(groups)]
    v, u = (torch.cat(side) for side in zip(*[(u.T, v.T) for u, v in pairs], strict=True))
    dtype, device = kind
    return normal(m, n, dtype=dtype, device=device), u.contiguous(), v.contiguous()


def assert_dx(got, dy, u, v, groups=1):
    dx, dt = got
    pairs = zip(dy.chunk(groups, 1), u.chunk(groups), strict=True)
    want = torch.cat([a.double() @ b.double() for a, b in pairs], 1)
    assert_matches(dt, want)
    assert_matches(dx, want @ v.double())


def dfactors_operands(m, n, k, rank, *kind, groups=1):
    """dy, x, t and dt, scaled for gradients of their size."""
    dtype, device = kind
    kind = {"dtype": dtype, "device": device}
    dy, dt = (normal(m, width, scale=m**-0.5, **kind) for width in (n, groups * rank))
    return dy, normal(m, k, **kind), normal(m, groups * rank, **kind), dt


def assert_dfactors(got, dy, x, t, dt, groups=1):
    du, dv, dbias = got
    dy, x, t, dt = (tensor.double() for tensor in (dy, x, t, dt))
    pairs = zip(dy.chunk(groups, 1), t.chunk(groups, 1), strict=True)
    assert_matches(du, torch.cat([a.T @ b for a, b in pairs]))
    assert_matches(dv, dt.T @ x)
    assert_matches(dbias, dy.sum(0))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_dx_of_any_size(bwd, one_launch, size, dtype, device):
    given = dx_operands(*size, dtype, device)
    assert_dx(bwd.low_rank_linear_dx(*given, variant=one_launch), *given)


@pytest.mark.parametrize("rank", [16, 96, 160, 256])
def test_dx_by_the_default_tiles(bwd, kernels, rank, device):
    given = dx_operands(70, 128, 192, rank, torch.float16, device)
    variant = kernels.variants.Variant("one_launch")
    assert_dx(bwd.low_rank_linear_dx(*given, variant=variant), *given)


@pytest.mark.parametrize("groups", [1, 3])
def test_dx_by_torch(bwd, kernels, groups, dtype, device):
    given = dx_operands(9, 48, 40, 8, dtype, device, groups=groups)
    variant = kernels.variants.Variant("two_launches")
    assert_dx(bwd.low_rank_linear_dx(*given, groups, variant), *given, groups)


@pytest.mark.parametrize("groups", [1, 3])
def test_dx_by_its_own_choice(bwd, groups, dtype, device):
    given = dx_operands(9, 48, 40, 8, dtype, device, groups=groups)
    assert_dx(bwd.low_rank_linear_dx(*given, groups), *given, groups)


@pytest.mark.parametrize("split", [1, 3])
def test_dx_with_its_columns_split_over_programs(bwd, one_launch, split, device, monkeypatch):
    tiles = {1: 5, 3: 2}[split]  # of the 5 that 300 columns are
    monkeypatch.setattr(bwd, "columns_per_program", lambda n, block_n, _: tiles * block_n)
    given = dx_operands(33, 40, 300, 24, torch.float16, device)
    assert_dx(bwd.low_rank_linear_dx(*given, variant=one_launch), *given)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_dfactors_of_any_size(bwd, tiles, size, groups, dtype, device):
    m, n, k, rank = size
    given = dfactors_operands(m, n * groups, k, rank, dtype, device, groups=groups)
    assert_dfactors(bwd.low_rank_linear_dfactors(*given, groups, tiles), *given, groups)


@pytest.mark.parametrize("m", [1, 32, 64, 65, 96, 130])
def test_dfactors_of_any_number_of_rows(bwd, kernels, tiles, m, dtype, device, monkeypatch):
    """Sums over 64 rows or more are split over programs."""
    monkeypatch.setattr(kernels.programs, "MIN_ROWS", 32)
    given = dfactors_operands(m, 64, 64, 16, dtype, device)
    assert_dfactors(bwd.low_rank_linear_dfactors(*given, 1, tiles), *given)


@pytest.mark.parametrize("rank", [16, 96, 128, 136])
def test_dfactors_by_their_own_choice(bwd, rank, dtype, device):
    given = dfactors_operands(70, 128, 192, rank, dtype, device)
    assert_dfactors(bwd.low_rank_linear_dfactors(*given), *given)


def test_dx_reads_nothing_outside_its_operands(bwd, one_launch, watch_reads, device):
    dy, u, v = dx_operands(33, 50, 70, 20, torch.float32, device)
    want = dy, u, v
    dy, u, v = row_strided(dy), fenced(u, float("nan")), fenced(v, float("nan"))
    watch_reads(dy, u, v)
    assert_dx(bwd.low_rank_linear_dx(dy, u, v, variant=one_launch), *want)


@pytest.mark.parametrize("splits", [1, 2])
@pytest.mark.parametrize(
    "size",
    [(35, 50, 70, 20), (64, 50, 64, 20), (64, 64, 70, 20), (64, 64, 64, 40), (64, 64, 64, 5)],
    ids=str,
)
def test_dfactors_read_nothing_outside_their_operands(
    bwd, kernels, tiles, watch_reads, size, splits, device, monkeypatch
):
    monkeypatch.setattr(kernels.programs, "MIN_ROWS", size[0] // splits)
    given = dfactors_operands(*size, torch.float32, device)
    strided = [row_strided(t) for t in given]
    watch_reads(*strided)
    assert_dfactors(bwd.low_rank_linear_dfactors(*strided, 1, tiles), *given)


def test_dx_of_rows_beyond_32_bit_offsets(bwd, one_launch, device):
    if device.type == "cuda":
        pytest.skip("memory is not allocated lazily on a GPU")
    _, u, v = dx_operands(1, 48, 40, 16, torch.float16, device)
    dy = far_apart_rows(33, 48)
    assert_dx(bwd.low_rank_linear_dx(dy, u, v, variant=one_launch), dy, u, v)


@pytest.mark.parametrize("which", ["dy", "x", "t", "dt"])
def test_dfactors_of_rows_beyond_32_bit_offsets(bwd, kernels, tiles, which, device, monkeypatch):
    if device.type == "cuda":
        pytest.skip("memory is not allocated lazily on a GPU")
    monkeypatch.setattr(kernels.programs, "MIN_ROWS", 16)  # the last row is a program's first
    operands = dfactors_operands(33, 48, 40, 16, torch.float16, device)
    given = dict(zip(("dy", "x", "t", "dt"), operands, strict=True))
    given[which] = far_apart_rows(33, given[which].shape[1]).copy_(given[which])
    assert_dfactors(bwd.low_rank_linear_dfactors(**given, tiles=tiles), **given)


def test_dfactors_do_not_share_memory(bwd, tiles, device):
    got = bwd.low_rank_linear_dfactors(
        *dfactors_operands(33, 48, 40, 16, torch.float16, device), 1, tiles
    )
    assert len({t.untyped_storage().data_ptr() for t in got}) == 3


def test_no_rows_give_zeros(bwd, device):
    dx, dt = bwd.low_rank_linear_dx(*dx_operands(0, 48, 40, 16, torch.float16, device))
    assert (dx.shape, dt.shape) == ((0, 40), (0, 16))
    operands = [t[:0] for t in dfactors_operands(1, 48, 40, 16, torch.float16, device)]
    du, dv, dbias = bwd.low_rank_linear_dfactors(*operands)
    assert (du.shape, dv.shape, dbias.shape) == ((48, 16), (16, 40), (48,))
    assert not any(t.any() for t in (du, dv, dbias))
