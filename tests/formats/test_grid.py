import pytest

from lada_ops.formats.grid import block_count, check_block, group_of, pack_of


def test_error_names_blocks_and_a_padding_that_would_do():
    with pytest.raises(ValueError, match="divide") as caught:
        check_block("here", (128, 16), (312, 1200))
    message = str(caught.value)
    assert message.startswith("here: block (128, 16) does not divide the weight (312, 1200)")
    assert "blocks that do: {39, 52, 78, 104} x {16}" in message
    assert "or pad the weight to (384, 1200)" in message


def test_blocks_it_names_do_divide():
    with pytest.raises(ValueError, match=r"\{16, 32\} x \{16\}; or pad the weight to \(128"):
        check_block("here", (64, 16), (96, 48))


def test_error_for_sizes_that_no_usual_block_divides_names_divisors():
    with pytest.raises(ValueError, match=r"\{6, 10, 15, 30\} x \{1, 7\}; or pad"):
        check_block("here", (16, 16), (30, 7))


@pytest.mark.parametrize("density", [-0.01, 1.01, float("nan"), float("inf")])
def test_density_out_of_range(density):
    with pytest.raises(ValueError, match="expected 0 to 1"):
        block_count("owner", (6, 12), (2, 3), density)


def test_density_of_every_count_gives_it_back():
    shape, block = (96, 7 * 16), (16, 16)
    assert [block_count("owner", shape, block, n / 42) for n in range(43)] == list(range(43))


@pytest.mark.parametrize(("width", "pack"), [(16, 4), (32, 2), (64, 1)])
def test_a_pack_is_one_step_of_a_kernel(width, pack):
    assert pack_of((128, width)) == pack


@pytest.mark.parametrize("width", [1, 4, 8, 48, 128])
def test_blocks_that_no_kernel_runs_are_not_packed(width):
    assert pack_of((16, width)) == 1


@pytest.mark.parametrize(("cols", "group"), [(64, 4), (128, 4), (48, 1), (80, 1), (16, 1)])
def test_a_group_is_a_pack_where_rows_hold_whole_packs(cols, group):
    assert group_of((32, cols), (32, 16)) == group


def test_density_of_every_number_of_groups_gives_it_back():
    shape, block = (96, 192), (16, 16)
    counts = [block_count("owner", shape, block, 4 * n / 72) for n in range(19)]
    assert counts == list(range(0, 73, 4))


@pytest.mark.parametrize(("density", "count"), [(0.49 / 18, 0), (0.51 / 18, 4), (0.5, 36), (1, 72)])
def test_density_gives_the_nearest_number_of_groups(density, count):
    assert block_count("owner", (96, 192), (16, 16), density) == count
