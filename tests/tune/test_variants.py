import pytest

from lada_ops.tune import Case
from lada_ops.tune.variants import variants_of


def names(case):
    return set(variants_of(case))


def torch_alone(case):
    return {name for name, space in variants_of(case).items() if space is None}


@pytest.mark.parametrize(
    ("weight", "epilogue", "variants"),
    [
        ("r128", "plain", {"one_launch", "two_launches"}),
        ("r256", "norm", {"one_launch", "two_launches"}),
        ("r384", "fused", {"two_launches"}),  # too wide for one
        ("r64x3", "plain", {"one_launch", "two_launches"}),
        ("r64x3", "norm", {"two_launches"}),  # no program owns whole rows
        ("128x16-d20", "plain", {"one_launch", "weights_left"}),
        ("32x32-d20", "plain", {"one_launch"}),  # too few rows for swapped operands
        ("r64+64x16-d05", "norm", {"one_launch", "weights_left"}),
        ("r64+32x32-d05", "norm", {"one_launch"}),
        ("96x16-d20", "plain", set()),  # no kernel has such blocks
        ("r128-3072-r128", "norm", {"one_launch", "split", "two_launches"}),
        ("r128-3072-r192", "norm", {"two_launches"}),
    ],
)
def test_variants_are_those_that_can_compute_the_case(weight, epilogue, variants):
    assert names(Case(768, 768, weight, epilogue)) == variants


@pytest.mark.parametrize(
    ("weight", "epilogue", "dtype", "alone"),
    [
        ("r128", "plain", "bfloat16", {"two_launches"}),
        ("r128", "fused", "bfloat16", set()),
        ("r128", "fused", "float32", {"two_launches"}),
        ("r64x3", "plain", "float32", set()),  # groups are a kernel's
        ("128x16-d20", "plain", "bfloat16", set()),
        ("r64-3072-r64", "plain", "bfloat16", {"two_launches"}),
    ],
)
def test_variants_that_torch_computes_have_no_tiles(weight, epilogue, dtype, alone):
    assert torch_alone(Case(768, 768, weight, epilogue, dtype=dtype)) == alone


def test_tiles_have_no_more_rows_than_tokens():
    for space in variants_of(Case(768, 768, "128x16-d20", tokens=32)).values():
        assert space is not None
        assert max(space.axes["BLOCK_M"]) == 32


def test_tiles_fit_into_the_blocks():
    (space,) = variants_of(Case(768, 768, "32x64-d20")).values()
    assert space is not None
    assert space.axes["BLOCK_N"] == (16, 32)
    assert space.axes["BLOCK_K"] == (64,)
