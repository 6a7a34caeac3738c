import pytest
import torch

from lada_ops.approximation.blocks import prune_blocks
from lada_ops.approximation.sparse_low_rank import alternate
from lada_ops.approximation.svd import damped, truncated_svd
from tests.approximation.weights import inputs_and_gram, norm

BLOCK = (4, 5)


def random():
    return torch.randn(24, 40, dtype=torch.float64)


def spiky(rank=2, blocks=5):
    """A weight that is a sum of both kinds: low rank, and a few large blocks."""
    low_rank = 3 * torch.randn(24, rank).double() @ torch.randn(rank, 40).double()
    keep = torch.zeros(48)
    keep[torch.randperm(48)[:blocks]] = 1
    mask = keep.view(6, 8).repeat_interleave(4, 0).repeat_interleave(5, 1).double()
    return low_rank + 5 * mask * torch.randn(24, 40).double()


def error(weight, got, x=None):
    rest = weight - got.to_dense()
    return norm(rest if x is None else rest @ x)


@pytest.mark.parametrize("with_inputs", [True, False])
@pytest.mark.parametrize("make", [random, spiky])
def test_never_worse_than_its_first_step(make, with_inputs):
    weight = make()
    x, gram = inputs_and_gram(40) if with_inputs else (None, None)
    first = error(weight, alternate(weight, 4, BLOCK, 0.2, gram, steps=1), x)
    errors = [error(weight, alternate(weight, 4, BLOCK, 0.2, gram, steps), x) for steps in (2, 8)]
    assert errors[1] <= errors[0] * (1 + 1e-9) <= first * (1 + 2e-9)


@pytest.mark.parametrize("density", [0.1, 0.4])
def test_never_worse_with_more_steps(density):
    """The choice of blocks sees the size of the inputs, not their correlation, and may err."""
    for _ in range(4):
        weight, (x, gram) = random(), inputs_and_gram(40)
        errors = [
            error(weight, alternate(weight, 2, BLOCK, density, gram, steps), x)
            for steps in range(1, 7)
        ]
        for fewer, more in zip(errors, errors[1:], strict=False):
            assert more <= fewer * (1 + 1e-9)


def test_no_worse_than_low_rank_alone():
    weight = random()
    got = error(weight, alternate(weight, 4, BLOCK, 0.2))
    assert got < error(weight, truncated_svd(weight, 4))


def test_no_worse_than_low_rank_alone_on_the_inputs():
    weight = random()
    x, gram = inputs_and_gram(40)
    got = error(weight, alternate(weight, 4, BLOCK, 0.2, gram), x)
    assert got < error(weight, truncated_svd(weight, 4, gram), x)


def test_no_worse_than_blocks_alone():
    weight = random()
    got = error(weight, alternate(weight, 4, BLOCK, 0.2))
    assert got < error(weight, prune_blocks(weight, BLOCK, 0.2))


def test_a_sum_of_both_kinds_is_found():
    weight = spiky()
    assert error(weight, alternate(weight, 2, BLOCK, 5 / 48, steps=50)) < 1e-6 * norm(weight)


def test_either_kind_alone_misses_the_sum():
    weight = spiky()
    assert error(weight, truncated_svd(weight, 2)) > 0.1 * norm(weight)
    assert error(weight, prune_blocks(weight, BLOCK, 5 / 48)) > 0.1 * norm(weight)


def test_no_blocks_is_the_truncated_svd():
    weight = random()
    got = alternate(weight, 4, BLOCK, 0.0)
    assert got.bsr.nnz == 0
    torch.testing.assert_close(got.to_dense(), truncated_svd(weight, 4).to_dense())


def test_no_blocks_is_the_whitened_svd():
    weight, (_, gram) = random(), inputs_and_gram(40)
    got = alternate(weight, 4, BLOCK, 0.0, gram).to_dense()
    want = truncated_svd(weight, 4, gram).to_dense()
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("with_inputs", [True, False])
def test_all_blocks_are_the_weight(with_inputs):
    weight = random()
    gram = inputs_and_gram(40)[1] if with_inputs else None
    got = alternate(weight, 4, BLOCK, 1.0, gram).to_dense()
    torch.testing.assert_close(got, weight, rtol=1e-6, atol=1e-6)


def test_full_rank_is_the_weight():
    weight = random()
    torch.testing.assert_close(alternate(weight, 24, BLOCK, 0.2).to_dense(), weight)


@pytest.mark.parametrize("with_inputs", [True, False])
def test_zero_weight_stays_zero(with_inputs):
    gram = inputs_and_gram(40)[1] if with_inputs else None
    got = alternate(torch.zeros(24, 40), 4, BLOCK, 0.2, gram).to_dense()
    assert torch.equal(got, torch.zeros(24, 40))


def test_few_tokens_give_no_nan():
    x = torch.randn(40, 2).double()
    got = alternate(random(), 4, BLOCK, 0.2, damped(x @ x.T))
    assert got.to_dense().isfinite().all()


@pytest.mark.parametrize("density", [0, 0.2, 1 / 3, 1])
def test_rank_and_density_are_met(density):
    got = alternate(random(), 4, BLOCK, density)
    assert (got.low_rank.rank, got.bsr.nnz) == (4, round(density * 48))


@pytest.mark.parametrize("with_inputs", [True, False])
def test_block_rows_keep_whole_packs(with_inputs):
    gram = inputs_and_gram(128)[1] if with_inputs else None
    bsr = alternate(torch.randn(96, 128).double(), 4, (16, 16), 0.3, gram).bsr
    assert set((bsr.crow_indices.diff() % 4).tolist()) == {0}
    assert bsr.nnz == 16


def test_density_is_met_where_blocks_are_zero():
    """A weight that u v holds exactly leaves nothing for S; S keeps its size all the same."""
    weight = torch.ones(24, 40).double()
    assert alternate(weight, 4, BLOCK, 0.25).bsr.nnz == 12


@pytest.mark.parametrize("with_inputs", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_dtype_is_kept_and_little_lost(dtype, with_inputs):
    weight = random().to(dtype)
    x, gram = inputs_and_gram(40) if with_inputs else (None, None)
    exact = error(weight.double(), alternate(weight.double(), 4, BLOCK, 0.2, gram), x)
    got = alternate(weight, 4, BLOCK, 0.2, gram)
    assert {got.low_rank.u.dtype, got.bsr.values.dtype} == {dtype}
    parts = got.low_rank.u.double() @ got.low_rank.v.double() + got.bsr.to_dense().double()
    rest = weight.double() - parts
    assert norm(rest if x is None else rest @ x) == pytest.approx(exact, rel=5e-3)


def test_weight_is_left_alone():
    weight = random()
    before = weight.clone()
    alternate(weight, 4, BLOCK, 0.2)
    assert torch.equal(weight, before)


def test_refuses_a_rank_out_of_range():
    with pytest.raises(ValueError, match="alternate: rank 25 .* expected 1 to 24"):
        alternate(random(), 25, BLOCK, 0.2)


def test_refuses_a_block_that_does_not_divide():
    with pytest.raises(ValueError, match=r"alternate: block \(5, 5\) does not divide"):
        alternate(random(), 4, (5, 5), 0.2)
