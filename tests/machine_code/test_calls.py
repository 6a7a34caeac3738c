import pytest
import torch

from lada_kernels.variants import Variant
from lada_ops.machine_code.calls import LauncherCall


def kernels(call):
    return [launch.name for launch in call.launches()]


def test_a_call_launches_its_kernel_with_its_operands():
    (launch,) = LauncherCall("low_rank_linear", 8192, 768, 3072, "r128", "gelu+residual").launches()
    constants = dict(launch.constants)
    assert launch.name == "_low_rank_linear_fwd_kernel"
    assert (constants["RANK"], constants["ACTIVATION"]) == (128, "gelu_poly")
    assert constants["HAS_RESIDUAL"]
    assert dict(launch.signature)["x_ptr"] == "*bf16"


def test_norm_comes_with_a_residual():
    (launch,) = LauncherCall(
        "low_rank_linear", 8192, 3072, 768, "r64", "norm", torch.float16
    ).launches()
    constants = dict(launch.constants)
    assert constants["HAS_NORM"]
    assert constants["HAS_RESIDUAL"]
    assert constants["ACTIVATION"] == "none"


def test_feed_forward_activates_between_its_products():
    launch = LauncherCall("low_rank_ffn", 8192, 768, 768, "r64-3072-r32", "none").launches()[0]
    constants = dict(launch.constants)
    assert (constants["R1"], constants["R2"], constants["ACTIVATION1"]) == (64, 32, "gelu_poly")


@pytest.mark.parametrize("whole_packs", [True, False])
def test_whole_packs_need_no_mask(whole_packs):
    call = LauncherCall("block_sparse_linear", 8192, 768, 3072, "128x16-d20", "none")
    call = LauncherCall(**(vars(call) | {"whole_packs": whole_packs}))
    (launch,) = call.launches()
    assert dict(launch.constants)["WHOLE_PACKS"] is whole_packs


@pytest.mark.parametrize(
    ("stem", "weight"),
    [("low_rank_linear", "r64x3"), ("sparse_low_rank_linear", "r64x3+64x16-d05")],
)
def test_groups_share_x(stem, weight):
    (launch,) = LauncherCall(stem, 512, 768, 2304, weight, "gelu").launches()
    assert dict(launch.constants)["GROUPS"] == 3


@pytest.mark.parametrize(
    ("gradient", "kernel", "block"),
    [
        ("x", "_block_sparse_linear_fwd_kernel", (16, 64)),  # of the transposed weight
        ("values", "_block_sparse_linear_dvalues_kernel", (64, 16)),
    ],
)
def test_a_gradient_launches_its_kernel(gradient, kernel, block):
    call = LauncherCall(
        "block_sparse_linear", 512, 768, 3072, "64x16-d05", "none", gradient=gradient
    )
    (launch,) = call.launches()
    constants = dict(launch.constants)
    assert launch.name == kernel
    assert (constants["BSR_ROWS"], constants["BSR_COLS"]) == block
    assert f"gradient of {gradient}" in str(call)


@pytest.mark.parametrize(
    ("gradient", "kernel"),
    [("x", "_low_rank_linear_dx_kernel"), ("factors", "_low_rank_linear_dfactors_kernel")],
)
def test_a_low_rank_gradient_launches_its_kernel(gradient, kernel):
    call = LauncherCall("low_rank_linear", 512, 768, 3072, "r96", "none", gradient=gradient)
    (launch,) = call.launches()
    constants = dict(launch.constants)
    assert launch.name == kernel
    assert (constants["RANK1"], constants["RANK2"]) == (64, 32)


def test_a_call_that_torch_computes_launches_nothing():
    assert kernels(LauncherCall("low_rank_linear", 8192, 768, 3072, "r256", "none")) == []


@pytest.mark.parametrize(
    ("stem", "weight", "launches"),
    [("low_rank_linear", "r64", 1), ("block_sparse_linear", "64x16-d20", 1)]
    + [("sparse_low_rank_linear", "r64+64x16-d05", 1), ("low_rank_ffn", "r64-3072-r64", 2)],
)
def test_a_dense_product_is_followed_by_the_epilogue_kernel(stem, weight, launches):
    call = LauncherCall(stem, 8192, 768, 768, weight, "norm", variant=Variant("dense"))
    assert kernels(call) == ["_add_norm_kernel"] * launches


def test_work_counts_each_weight_once_per_token():
    work = LauncherCall("low_rank_linear", 100, 768, 3072, "r64", "gelu").work
    assert work.flops == 2 * 100 * 64 * (768 + 3072)
    assert work.bytes == 2 * (64 * (768 + 3072) + 100 * (768 + 3072))


def test_work_counts_a_residual():
    plain, residual = (
        LauncherCall("low_rank_linear", 100, 768, 3072, "r64", e).work
        for e in ("gelu", "gelu+residual")
    )
    assert residual.bytes - plain.bytes == 2 * 100 * 3072


def test_work_counts_stored_blocks_alone():
    work = LauncherCall("block_sparse_linear", 1, 768, 3072, "128x16-d25", "none").work
    assert work.flops == 2 * 768 * 3072 // 4


def test_work_of_the_sum_is_that_of_its_parts():
    both = LauncherCall("sparse_low_rank_linear", 7, 768, 3072, "r64+128x16-d25", "none").work
    low_rank = LauncherCall("low_rank_linear", 7, 768, 3072, "r64", "none").work
    sparse = LauncherCall("block_sparse_linear", 7, 768, 3072, "128x16-d25", "none").work
    assert both.flops == low_rank.flops + sparse.flops


def test_work_of_a_feed_forward_is_that_of_both_linears():
    work = LauncherCall("low_rank_ffn", 1, 768, 768, "r64-3072-r32", "none").work
    assert work.flops == 2 * (64 * (768 + 3072) + 32 * (3072 + 768))


def test_unknown_weight_is_named():
    with pytest.raises(ValueError, match="weight 'rank64'; expected such as r128"):
        LauncherCall("low_rank_linear", 16, 768, 768, "rank64", "none").launches()
