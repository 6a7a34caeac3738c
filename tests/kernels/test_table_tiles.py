"""Whatever tiles a table holds: it is refused, or the kernels write all of a right output."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lada_kernels.variants import VariantName
from tests.kernels.operands import (
    assert_matches,
    dense_oracle,
    factors,
    ffn_launcher,
    launcher,
    layer_norm,
    normal,
    sparse_weight,
    to_bsr,
)
from tests.properties import FEW

pytestmark = pytest.mark.usefixtures("poisoned_outputs")

M, N, K, RANK, GROUPS = 21, 96, 80, 24, 3
BLOCK = 32, 16
SIZES = st.sampled_from([16, 32, 64, 128, 256])
TILES = st.fixed_dictionaries({name: SIZES for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K")})


@pytest.fixture
def operands(device):
    kind = {"dtype": torch.float32, "device": device}
    u, v = factors(N, K, RANK, **kind)
    return {
        "x": normal(M, K, **kind),
        "bias": normal(N, **kind),
        "residual": normal(M, N, **kind),
        "norm": layer_norm(N, **kind),
        "u": u,
        "v": v,
        "weight": sparse_weight(torch.rand(N // 32, K // 16) < 0.5, BLOCK, **kind),
    }


def low_rank(kernels, variant, o):
    fwd = launcher(kernels, "low_rank_linear")
    y = fwd(o["x"], o["u"], o["v"], o["bias"], norm=o["norm"], variant=variant)
    return y, dense_oracle(o["x"], o["u"].double() @ o["v"].double(), o["bias"], norm=o["norm"])


def low_rank_groups(kernels, variant, o):
    u, v = o["u"].repeat(GROUPS, 1), o["v"].repeat(GROUPS, 1)
    fwd = launcher(kernels, "low_rank_linear")
    y = fwd(o["x"], u, v, None, activation="relu", groups=GROUPS, variant=variant)
    want = dense_oracle(o["x"], o["u"].double() @ o["v"].double(), activation="relu")
    return y, want.repeat(1, GROUPS)


def low_rank_dx(kernels, variant, o):
    dy = o["residual"]
    dx, dt = kernels.low_rank_linear_bwd.low_rank_linear_dx(dy, o["u"], o["v"], variant=variant)
    want = dy.double() @ o["u"].double()
    assert_matches(dt, want)
    return dx, want @ o["v"].double()


def ffn(kernels, variant, o):
    u, v = o["u"], o["v"]
    y = ffn_launcher(kernels)(
        o["x"], u, v, o["bias"], v.T.contiguous(), u.T.contiguous(), None, variant=variant
    )
    weight = u.double() @ v.double()
    return y, dense_oracle(dense_oracle(o["x"], weight, o["bias"], None, "gelu"), weight.T)


def sparse(kernels, variant, o):
    fwd = launcher(kernels, "block_sparse_linear")
    y = fwd(o["x"], *to_bsr(o["weight"], BLOCK), o["bias"], o["residual"], variant=variant)
    return y, dense_oracle(o["x"], o["weight"], o["bias"], o["residual"])


def sparse_low_rank(kernels, variant, o):
    fwd = launcher(kernels, "sparse_low_rank_linear")
    y = fwd(o["x"], o["u"], o["v"], *to_bsr(o["weight"], BLOCK), None, variant=variant)
    weight = o["weight"].double() + o["u"].double() @ o["v"].double()
    return y, dense_oracle(o["x"], weight)


CASES = {  # the op's table, the weight's name in it, the variants, and how it is called
    "low_rank": ("low_rank_linear", "r32", ["one_launch"], low_rank),
    "groups": ("low_rank_linear", "r32x3", ["one_launch", "two_launches"], low_rank_groups),
    "dx": ("low_rank_linear", "r32", ["one_launch"], low_rank_dx),
    "ffn": ("low_rank_ffn", "r32-96-r32", ["one_launch", VariantName.SPLIT_K], ffn),
    "sparse": ("block_sparse_linear", "32x16-d50", ["one_launch", VariantName.SWAP_AB], sparse),
    "sum": (
        "sparse_low_rank_linear",
        "r32+32x16-d50",
        ["one_launch", VariantName.SWAP_AB],
        sparse_low_rank,
    ),
}


def read(kernels, folder, stem, weight, variant, tiles):
    """The variant as the table's reader gives it."""
    table = kernels.table
    key = table.Key("float32", K, N, weight, "plain")
    made = table.Table(stem, "GPU", "3.6")
    given = kernels.variants.TileConfig(**tiles, num_warps=4, num_stages=2)
    made.add(key, 32, {"dense": table.Measured(2.0), variant: table.Measured(1.0, given)}, {})
    path = folder / "table.json"
    path.write_text(json.dumps(made.to_dict()))
    found = table.Table.read(path, stem, "GPU", "3.6").entries[key][32].variants[variant]
    return kernels.variants.Variant(variant, found.tiles)


@pytest.mark.parametrize("case", CASES)
@settings(FEW, max_examples=10)
@given(data=st.data())
def test_tiles_are_refused_or_leave_nothing_unwritten(kernels, operands, tmp_path, case, data):
    if operands["x"].is_cuda:
        pytest.skip("a GPU has no room for the largest tiles, and says so")
    stem, weight, variants, run = CASES[case]
    tiles = data.draw(TILES)
    try:
        variant = read(kernels, tmp_path, stem, weight, data.draw(st.sampled_from(variants)), tiles)
    except kernels.table.TableError as error:
        reason = error.reason
    else:
        assert_matches(*run(kernels, variant, operands))
        return
    assert any(f"{name} is {tiles[name]} for blocks" in reason for name in tiles)


@pytest.mark.parametrize("change", [{"BLOCK_N": 128}, {"BLOCK_N": 64}, {"BLOCK_K": 16}])
@pytest.mark.parametrize("op", ["fwd", "dvalues"])
def test_launchers_refuse_tiles_that_do_not_fit_the_blocks(kernels, device, op, change):
    kind = {"dtype": torch.float32, "device": device}
    bsr = to_bsr(sparse_weight(torch.ones(3, 2, dtype=torch.bool), (32, 32), **kind), (32, 32))
    x, dy = normal(M, 64, **kind), normal(M, N, **kind)
    sizes = {"BLOCK_M": 16, "BLOCK_N": 32, "BLOCK_K": 32, "num_warps": 4, "num_stages": 2}
    tiles = kernels.variants.TileConfig(**sizes | change)
    fwd = launcher(kernels, "block_sparse_linear")
    dvalues = kernels.block_sparse_linear_bwd.block_sparse_linear_dvalues
    launch = {
        "fwd": lambda: fwd(x, *bsr, None, variant=kernels.variants.Variant("one_launch", tiles)),
        "dvalues": lambda: dvalues(dy, x, *bsr[:2], 32, 32, tiles),
    }[op]
    with pytest.raises(ValueError, match=r"BLOCK_. is \d+ for blocks of 32x32; expected a"):
        launch()
