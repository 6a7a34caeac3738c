import pytest

from lada_kernels import weight_names
from lada_kernels.weight_names import WeightName


@pytest.mark.parametrize(
    ("rank", "name"), [(1, "r32"), (32, "r32"), (33, "r64"), (72, "r96"), (1025, "r2048")]
)
def test_a_rank_is_named_by_the_next_bucket_up(rank, name):
    assert weight_names.low_rank_name(rank) == name


def test_groups_are_named():
    assert weight_names.low_rank_name(64, 3) == "r64x3"


@pytest.mark.parametrize(
    ("density", "name"),
    [(0.0, "d05"), (0.05, "d05"), (0.1, "d10"), (0.104, "d10"), (0.106, "d20"), (1.0, "d100")],
)
def test_a_density_is_named_by_the_next_bucket_up(density, name):
    assert weight_names.sparse_name(128, 16, density) == f"128x16-{name}"


def test_sums_and_pairs_are_named_by_their_parts():
    assert weight_names.sparse_low_rank_name(64, 64, 32, 0.3) == "r64+64x32-d30"
    assert weight_names.sparse_low_rank_name(64, 64, 32, 0.3, 3) == "r64x3+64x32-d30"
    assert weight_names.ffn_name(60, 3072, 128) == "r64-3072-r128"


@pytest.mark.parametrize(("m", "bucket"), [(1, 1), (2, 2), (3, 4), (64, 64), (65, 128)])
def test_tokens_belong_to_the_next_power_of_two(m, bucket):
    assert weight_names.token_bucket(m) == bucket


@pytest.mark.parametrize(
    ("name", "weight"),
    [
        ("r128", WeightName("low_rank_linear", rank=128)),
        ("r64x3", WeightName("low_rank_linear", rank=64, groups=3)),
        ("128x16-d20", WeightName("block_sparse_linear", rows=128, cols=16, percent=20)),
        (
            "r64+64x32-d05",
            WeightName("sparse_low_rank_linear", rank=64, rows=64, cols=32, percent=5),
        ),
        (
            "r64x3+64x32-d05",
            WeightName("sparse_low_rank_linear", rank=64, groups=3, rows=64, cols=32, percent=5),
        ),
        ("r64-3072-r128", WeightName("low_rank_ffn", rank=64, hidden=3072, rank2=128)),
    ],
)
def test_a_name_tells_the_numbers_and_they_the_name(name, weight):
    assert WeightName.parse(name) == weight
    assert weight.name == name


@pytest.mark.parametrize("name", ["", "r", "r0", "64", "r64x", "128x16", "128x16-d101", "r64-r64"])
def test_a_name_of_no_weight_is_refused(name):
    with pytest.raises(ValueError, match="expected such as r128"):
        WeightName.parse(name)
