import pytest
import torch

from lada_kernels.variants import Variant
from lada_ops.machine_code.cases import Case


def kernels(case):
    return [launch.name for launch in case.launches()]


def test_operands_are_those_of_the_launcher():
    (launch,) = Case("low_rank_linear", 8192, 768, 3072, "r128", "gelu+residual").launches()
    constants = dict(launch.constants)
    assert launch.name == "_low_rank_linear_fwd_kernel"
    assert (constants["RANK"], constants["ACTIVATION"]) == (128, "gelu_poly")
    assert constants["HAS_RESIDUAL"]
    assert dict(launch.signature)["x_ptr"] == "*bf16"


def test_norm_comes_with_a_residual():
    (launch,) = Case("low_rank_linear", 8192, 3072, 768, "r64", "norm", torch.float16).launches()
    constants = dict(launch.constants)
    assert constants["HAS_NORM"]
    assert constants["HAS_RESIDUAL"]
    assert constants["ACTIVATION"] == "none"


def test_feed_forward_activates_between_its_products():
    launch = Case("low_rank_ffn", 8192, 768, 768, "r64-3072-r32", "none").launches()[0]
    constants = dict(launch.constants)
    assert (constants["R1"], constants["R2"], constants["ACTIVATION1"]) == (64, 32, "gelu_poly")


@pytest.mark.parametrize("whole_packs", [True, False])
def test_sorted_rows_need_no_mask(whole_packs):
    case = Case("block_sparse_linear", 8192, 768, 3072, "128x16-d20", "none")
    case = Case(**(vars(case) | {"whole_packs": whole_packs}))
    (launch,) = case.launches()
    assert dict(launch.constants)["WHOLE_PACKS"] is whole_packs


@pytest.mark.parametrize(
    ("stem", "weight"),
    [("low_rank_linear", "r64x3"), ("sparse_low_rank_linear", "r64x3+64x16-d05")],
)
def test_groups_share_x(stem, weight):
    (launch,) = Case(stem, 512, 768, 2304, weight, "gelu").launches()
    assert dict(launch.constants)["GROUPS"] == 3


@pytest.mark.parametrize(
    ("gradient", "kernel", "block"),
    [
        ("x", "_block_sparse_linear_fwd_kernel", (16, 64)),  # of the transposed weight
        ("values", "_block_sparse_linear_dvalues_kernel", (64, 16)),
    ],
)
def test_gradients_are_cases_too(gradient, kernel, block):
    case = Case("block_sparse_linear", 512, 768, 3072, "64x16-d05", "none", gradient=gradient)
    (launch,) = case.launches()
    constants = dict(launch.constants)
    assert launch.name == kernel
    assert (constants["BSR_ROWS"], constants["BSR_COLS"]) == block
    assert f"gradient of {gradient}" in str(case)


@pytest.mark.parametrize(
    ("gradient", "kernel"),
    [("x", "_low_rank_linear_dx_kernel"), ("factors", "_low_rank_linear_dfactors_kernel")],
)
def test_gradients_of_low_rank_are_cases_too(gradient, kernel):
    case = Case("low_rank_linear", 512, 768, 3072, "r96", "none", gradient=gradient)
    (launch,) = case.launches()
    constants = dict(launch.constants)
    assert launch.name == kernel
    assert (constants["RANK1"], constants["RANK2"]) == (64, 32)


def test_what_torch_does_alone_launches_nothing():
    assert kernels(Case("low_rank_linear", 8192, 768, 3072, "r256", "none")) == []


@pytest.mark.parametrize(
    ("stem", "weight", "launches"),
    [("low_rank_linear", "r64", 1), ("block_sparse_linear", "64x16-d20", 1)]
    + [("sparse_low_rank_linear", "r64+64x16-d05", 1), ("low_rank_ffn", "r64-3072-r64", 2)],
)
def test_a_dense_product_is_followed_by_the_rest(stem, weight, launches):
    case = Case(stem, 8192, 768, 768, weight, "norm", way=Variant("dense"))
    assert kernels(case) == ["_add_norm_kernel"] * launches


def test_every_weight_is_met_once_by_every_token():
    work = Case("low_rank_linear", 100, 768, 3072, "r64", "gelu").work
    assert work.flops == 2 * 100 * 64 * (768 + 3072)
    assert work.bytes == 2 * (64 * (768 + 3072) + 100 * (768 + 3072))


def test_a_residual_is_read():
    plain, residual = (
        Case("low_rank_linear", 100, 768, 3072, "r64", e).work for e in ("gelu", "gelu+residual")
    )
    assert residual.bytes - plain.bytes == 2 * 100 * 3072


def test_stored_blocks_alone_are_work():
    work = Case("block_sparse_linear", 1, 768, 3072, "128x16-d25", "none").work
    assert work.flops == 2 * 768 * 3072 // 4


def test_work_of_the_sum_is_that_of_its_parts():
    both = Case("sparse_low_rank_linear", 7, 768, 3072, "r64+128x16-d25", "none").work
    low_rank = Case("low_rank_linear", 7, 768, 3072, "r64", "none").work
    sparse = Case("block_sparse_linear", 7, 768, 3072, "128x16-d25", "none").work
    assert both.flops == low_rank.flops + sparse.flops


def test_feed_forward_does_both_linears():
    work = Case("low_rank_ffn", 1, 768, 768, "r64-3072-r32", "none").work
    assert work.flops == 2 * (64 * (768 + 3072) + 32 * (3072 + 768))


def test_unknown_weight_is_named():
    with pytest.raises(ValueError, match="weight 'rank64'; expected such as r128"):
        Case("low_rank_linear", 16, 768, 768, "rank64", "none").launches()
