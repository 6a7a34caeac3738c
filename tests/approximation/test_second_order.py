import pytest
import torch

from lada_ops.approximation.blocks import block_gains, prune_blocks
from lada_ops.approximation.second_order import removals

ROWS, WIDTH, COUNT = 3, 4, 6


def error_without(weight, x, gone):
    """``||(W - S) X||^2`` of the best S without the block columns `gone`, by least squares."""
    kept = torch.ones(COUNT, dtype=torch.bool)
    kept[gone] = False
    seen = x[kept.repeat_interleave(WIDTH)].T
    target = (weight @ x).T
    if not len(seen.T):
        return float(target.square().sum())
    return float((target - seen @ torch.linalg.lstsq(seen, target).solution).square().sum())


@pytest.fixture
def layer():
    """Inputs of like sizes: it is by their correlation that the orders differ."""
    size = WIDTH * COUNT
    x = torch.randn(size, size).double() @ torch.randn(size, 60).double()
    return torch.randn(2, ROWS, size).double(), x, x @ x.T


def test_each_removal_is_the_one_that_raises_the_error_least(layer):
    weight, x, gram = layer
    for rows, cols in zip(weight, removals(weight, WIDTH, gram)[0].tolist(), strict=True):
        for left in range(COUNT, 0, -1):
            gone = cols[left:]
            errors = {c: error_without(rows, x, [*gone, c]) for c in cols[:left]}
            assert cols[left - 1] == min(errors, key=lambda c: errors[c])


def test_losses_are_what_each_removal_adds_to_the_error(layer):
    weight, x, gram = layer
    for rows, cols, losses in zip(weight, *removals(weight, WIDTH, gram), strict=True):
        gone = [cols[left:].tolist() for left in range(COUNT + 1)]
        errors = torch.tensor([error_without(rows, x, g) for g in gone]).double()
        torch.testing.assert_close(losses, errors[:-1] - errors[1:], rtol=1e-5, atol=1e-6)


def test_a_block_that_another_repeats_goes_first_whatever_its_size():
    """Size alone cannot see it: the two largest blocks multiply the same input."""
    x = torch.eye(4).double()
    x[1] = x[0]
    gram = x @ x.T + 1e-6 * torch.eye(4).double()
    weight = torch.tensor([[3.0, 3.0, 2.0, 1.0]]).double()
    assert set(prune_blocks(weight, (1, 1), 0.5, gram).col_indices.tolist()) == {0, 1}
    kept = prune_blocks(weight, (1, 1), 0.5, gram, "second_order")
    assert 2 in kept.col_indices.tolist()
    got = kept.to_dense()[0]
    assert float(got[:2].sum()) == pytest.approx(6, rel=1e-5)


def test_gains_follow_the_selection(layer):
    weight, _, gram = layer
    weight = weight.flatten(0, 1)
    losses = removals(weight.unflatten(0, (2, ROWS)), WIDTH, gram)[1]
    want = losses.flatten().sort(descending=True).values
    got = torch.tensor(block_gains(weight, gram, (ROWS, WIDTH), "second_order")).double()
    torch.testing.assert_close(got, want)
    assert block_gains(weight, gram, (ROWS, WIDTH)) != pytest.approx(want.tolist())


@pytest.mark.parametrize("call", [prune_blocks, block_gains])
def test_an_unknown_selection_is_refused(call):
    weight, gram = torch.ones(2, 2), torch.eye(2).double()
    arguments = {"prune_blocks": ((1, 1), 0.5, gram), "block_gains": (gram, (1, 1))}
    with pytest.raises(ValueError, match="selection 'magic'; expected one of"):
        call(weight, *arguments[call.__name__], selection="magic")


@pytest.mark.parametrize("scale", [1e-60, 1e60])
def test_the_order_does_not_depend_on_the_scale_of_the_inputs(layer, scale):
    weight, _, gram = layer
    cols, losses = removals(weight, WIDTH, gram)
    got_cols, got_losses = removals(weight, WIDTH, scale * gram)
    assert torch.equal(got_cols, cols)
    torch.testing.assert_close(got_losses / scale, losses, rtol=1e-5, atol=1e-6)
