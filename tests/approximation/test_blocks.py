import itertools

import pytest
import torch

from lada_ops.approximation.blocks import block_gains, prune_blocks
from lada_ops.approximation.svd import damped
from tests.approximation.weights import inputs_and_gram, norm

BLOCK = (4, 5)


def random(rows=24, cols=40):
    return torch.randn(rows, cols, dtype=torch.float64)


def kept_mask(bsr):
    """Mask (out, in) of the elements in stored blocks."""
    grid = torch.zeros(bsr.grid, dtype=torch.bool)
    for row in range(bsr.grid[0]):
        grid[row, bsr.col_indices[bsr.crow_indices[row] : bsr.crow_indices[row + 1]].long()] = True
    return grid.repeat_interleave(bsr.block[0], 0).repeat_interleave(bsr.block[1], 1)


def best_fit(weight, mask, x):
    """The least-squares fit of ``W X`` row by row, each with the inputs its mask leaves it."""
    fitted = torch.zeros_like(weight)
    for row, kept in enumerate(mask):
        solved = torch.linalg.lstsq(x[kept].T, (weight[row] @ x)[:, None]).solution
        fitted[row, kept] = solved[:, 0]
    return fitted


def test_largest_blocks_are_kept():
    scale = torch.zeros(6, 8)
    scale[0, 7], scale[3, 2], scale[5, 0] = 3.0, 2.0, 1.5
    weight = torch.ones(24, 40) * (scale + 0.1).repeat_interleave(4, 0).repeat_interleave(5, 1)
    bsr = prune_blocks(weight, BLOCK, 3 / 48)
    assert bsr.crow_indices.tolist() == [0, 1, 1, 1, 2, 2, 3]
    assert bsr.col_indices.tolist() == [7, 2, 0]


def test_a_block_counts_by_its_whole_norm():
    weight = torch.zeros(4, 10)
    weight[0, 0] = 3.0  # norm 3
    weight[:, 5:] = 1.0  # norm sqrt(20)
    assert prune_blocks(weight, BLOCK, 0.5).col_indices.tolist() == [1]


def test_kept_blocks_are_those_of_the_weight():
    weight = random()
    bsr = prune_blocks(weight, BLOCK, 0.4)
    assert torch.equal(bsr.to_dense(), weight * kept_mask(bsr))


def test_sign_does_not_matter():
    weight = random()
    first, second = prune_blocks(weight, BLOCK, 0.4), prune_blocks(-weight, BLOCK, 0.4)
    assert torch.equal(first.col_indices, second.col_indices)


@pytest.mark.parametrize("density", [0, 1 / 48, 0.3, 0.5, 47 / 48, 1])
def test_density_is_met(density):
    assert prune_blocks(random(), BLOCK, density).nnz == round(density * 48)


@pytest.mark.parametrize("density", [0, 0.3, 1])
def test_density_is_met_with_inputs(density):
    gram = damped(inputs_and_gram(40)[1])
    assert prune_blocks(random(), BLOCK, density, gram).nnz == round(density * 48)


def test_full_density_is_the_weight():
    weight = random()
    assert torch.equal(prune_blocks(weight, BLOCK, 1.0).to_dense(), weight)


def test_full_density_is_the_weight_with_inputs():
    weight = random()
    got = prune_blocks(weight, BLOCK, 1.0, inputs_and_gram(40)[1]).to_dense()
    torch.testing.assert_close(got, weight, rtol=1e-6, atol=1e-6)


def test_equal_blocks_are_kept_up_to_the_count():
    assert prune_blocks(torch.ones(24, 40), BLOCK, 0.5).nnz == 24


def test_zero_weight_stays_zero():
    bsr = prune_blocks(torch.zeros(24, 40), BLOCK, 0.25, inputs_and_gram(40)[1])
    assert torch.equal(bsr.to_dense(), torch.zeros(24, 40))


def test_blocks_count_by_the_size_of_their_inputs():
    gram = torch.diag(torch.tensor([100.0] * 5 + [1.0] * 5, dtype=torch.float64))
    weight = torch.cat([torch.ones(4, 5), 5 * torch.ones(4, 5)], 1).double()
    assert prune_blocks(weight, BLOCK, 0.5).col_indices.tolist() == [1]
    assert prune_blocks(weight, BLOCK, 0.5, gram).col_indices.tolist() == [0]
    gram[:5] /= 10  # 1 * 10 against 25 * 1
    assert prune_blocks(weight, BLOCK, 0.5, gram).col_indices.tolist() == [1]


def test_gains_are_the_scores_best_first():
    gram = torch.diag(torch.tensor([4.0] * 5 + [1.0] * 5, dtype=torch.float64))
    weight = torch.cat([torch.ones(8, 5), 3 * torch.ones(8, 5)], 1).double()
    weight[4:] *= 10
    scores = 20 * torch.tensor([100 * 9, 100 * 4, 9, 4.0]).double()
    assert block_gains(weight, gram, BLOCK) == pytest.approx(scores.tolist())


def test_gains_of_zeros_are_zero():
    assert block_gains(torch.zeros(4, 10), torch.eye(10).double(), BLOCK) == [0, 0]


def test_gains_are_what_refitted_blocks_add():
    """The blocks in the order of their sizes, which correlated inputs do not change."""
    weight = random(4, 40)
    x, gram = inputs_and_gram(40)
    sizes = (weight * gram.diagonal().sqrt()).view(4, 8, 5).square().sum((0, 2))
    errors = []
    for count in range(9):
        mask = torch.zeros(8, dtype=torch.bool)
        mask[sizes.argsort(descending=True)[:count]] = True
        kept = mask.repeat_interleave(5).expand(4, 40)
        errors.append(norm((weight - best_fit(weight, kept, x)) @ x) ** 2)
    gains = [more - less for more, less in zip(errors, errors[1:], strict=False)]
    want = sorted(gains, reverse=True)
    got = block_gains(weight, gram, BLOCK)
    assert got == pytest.approx(want, rel=1e-6, abs=1e-9)


def test_a_block_whose_inputs_others_repeat_is_worth_little():
    gram = damped(torch.ones(10, 10).double())
    weight = torch.cat([3 * torch.ones(4, 10), torch.ones(4, 10)]).double()
    assert prune_blocks(weight, BLOCK, 0.5).crow_indices.tolist() == [0, 2, 2]
    assert prune_blocks(weight, BLOCK, 0.5, gram).crow_indices.tolist() == [0, 1, 2]


@pytest.mark.parametrize("density", [0, 1 / 12, 0.3, 0.5, 1])
@pytest.mark.parametrize("with_inputs", [True, False])
@pytest.mark.parametrize("width", [16, 32, 64])
def test_block_rows_keep_whole_packs(width, with_inputs, density):
    gram = damped(inputs_and_gram(128)[1]) if with_inputs else None
    bsr = prune_blocks(random(96, 128), (16, width), density, gram)
    assert set((bsr.crow_indices.diff() * width % 64).tolist()) == {0}
    assert bsr.nnz == 64 // width * round(density * 12)


def test_a_pack_is_of_the_best_blocks_wherever_they_lie():
    scale = torch.ones(2, 8)
    scale[0, [1, 3, 4, 7]] = 3.0
    scale[1, 2] = 5.0  # 25 + 3 * 1 of a whole pack, against 4 * 9
    weight = torch.ones(32, 128) * scale.repeat_interleave(16, 0).repeat_interleave(16, 1)
    bsr = prune_blocks(weight, (16, 16), 0.25)
    assert (bsr.crow_indices.tolist(), bsr.col_indices.tolist()) == ([0, 4, 4], [1, 3, 4, 7])


def test_packs_hold_the_largest_norm_that_whole_packs_can():
    weight = random(48, 192)
    norms = weight.view(3, 16, 12, 16).square().sum((1, 3)).sort(1, descending=True).values
    best = max(
        sum(float(row[:count].sum()) for row, count in zip(norms, counts, strict=True))
        for counts in itertools.product((0, 4, 8, 12), repeat=3)
        if sum(counts) == 16
    )
    got = float(prune_blocks(weight, (16, 16), 16 / 36).values.square().sum())
    assert got == pytest.approx(best)


def test_blocks_are_kept_one_by_one_where_columns_are_no_whole_packs():
    scale = torch.ones(2, 6)
    scale[0, 1], scale[1, 5] = 2.0, 3.0
    weight = torch.ones(32, 96) * scale.repeat_interleave(16, 0).repeat_interleave(16, 1)
    bsr = prune_blocks(weight, (16, 16), 2 / 12)
    assert (bsr.crow_indices.tolist(), bsr.col_indices.tolist()) == ([0, 1, 2], [1, 5])


def test_gains_are_of_whole_packs():
    scale = torch.tensor([8.0, 1, 7, 2, 6, 3, 5, 4])
    weight = torch.ones(16, 128).double() * scale.repeat_interleave(16)
    best, rest = 64 + 49 + 36 + 25, 16 + 9 + 4 + 1
    want = [16 * 16 * best, 16 * 16 * rest]
    assert block_gains(weight, torch.eye(128).double(), (16, 16)) == pytest.approx(want)


def test_refit_is_the_least_squares_fit_of_every_row():
    weight = random()
    x, gram = inputs_and_gram(40)
    bsr = prune_blocks(weight, BLOCK, 0.4, gram)
    want = best_fit(weight, kept_mask(bsr), x)
    torch.testing.assert_close(bsr.to_dense(), want, rtol=1e-6, atol=1e-6)


def test_refit_is_better_on_the_inputs_than_the_blocks_themselves():
    weight = random()
    x, gram = inputs_and_gram(40)
    bsr = prune_blocks(weight, BLOCK, 0.4, gram)
    cut = weight * kept_mask(bsr)
    assert norm((weight - bsr.to_dense()) @ x) < 0.9 * norm((weight - cut) @ x)


def test_refit_of_uncorrelated_inputs_changes_nothing():
    weight = random()
    gram = torch.diag(torch.rand(40, dtype=torch.float64) + 0.5)
    bsr = prune_blocks(weight, BLOCK, 0.4, gram)
    torch.testing.assert_close(bsr.to_dense(), weight * kept_mask(bsr))


@pytest.mark.parametrize("with_inputs", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_dtype_is_kept(dtype, with_inputs):
    gram = inputs_and_gram(40)[1] if with_inputs else None
    bsr = prune_blocks(random().to(dtype), BLOCK, 0.4, gram)
    assert bsr.values.dtype == dtype
    assert bsr.values.isfinite().all()


def test_weight_is_left_alone():
    weight = random()
    before = weight.clone()
    prune_blocks(weight, BLOCK, 0.4, inputs_and_gram(40)[1])
    assert torch.equal(weight, before)


def test_values_are_panel_major():
    assert prune_blocks(random(), BLOCK, 0.4).values.transpose(1, 2).is_contiguous()


def test_weight_that_records_gradients_gives_blocks_that_do_not():
    assert not prune_blocks(random().requires_grad_(), BLOCK, 0.4).values.requires_grad


@pytest.mark.parametrize("density", [-0.1, 1.5, float("nan")])
def test_refuses_a_density_out_of_range(density):
    with pytest.raises(ValueError, match="density .*; expected 0 to 1"):
        prune_blocks(random(), BLOCK, density)


def test_refuses_a_block_that_does_not_divide():
    with pytest.raises(ValueError, match=r"prune_blocks: block \(5, 5\) does not divide"):
        prune_blocks(random(), (5, 5), 0.5)
