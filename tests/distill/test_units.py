import pytest
import torch
from torch import nn

from lada_ops import BlockSparseLinear, LowRankLinear, SparseLowRankLinear
from lada_ops.distill.units import (
    DenseBlocks,
    RankSlices,
    StoredBlocks,
    UnitGrid,
    select_units,
    unit_grids,
)

BLOCK = (16, 16)


def modules() -> dict[str, nn.Module]:
    return {
        "low rank": LowRankLinear(128, 64, 16),
        "sparse": BlockSparseLinear(128, 64, BLOCK, 0.5),
        "both": SparseLowRankLinear(128, 64, 8, BLOCK, 0.5),
        "dense": nn.Linear(128, 64),
    }


def pruned_parameter(grid: UnitGrid) -> str:
    return {RankSlices: "u", StoredBlocks: "values", DenseBlocks: "weight"}[type(grid)]


def loss_of(module: nn.Module) -> torch.Tensor:
    torch.manual_seed(1)
    return module(torch.randn(8, 128)).square().sum()


@pytest.mark.parametrize("name", modules())
def test_gate_gradients_are_the_derivatives_by_a_gate(name):
    """A unit's weights times 1 + e change the loss by e times its gate gradient."""
    module = modules()[name].double()
    if name == "both":
        nn.init.normal_(module.get_parameter("values"))
    torch.manual_seed(1)
    x = torch.randn(8, 128, dtype=torch.float64)
    module(x).square().sum().backward()
    for grid in unit_grids({"": module}, BLOCK, 8):
        gated = module.get_parameter(pruned_parameter(grid))
        gradients, whole = grid.gate_gradients(), gated.detach().clone()
        for cell in grid.present.nonzero()[::7].tolist():
            others = grid.present.clone()
            others[tuple(cell)] = False
            losses = []
            with torch.no_grad():
                before = [p.clone() for p in module.parameters()]
                grid.zero(others)
                unit = gated.clone()
                for p, value in zip(module.parameters(), before, strict=True):
                    p.copy_(value)
                for e in (1e-5, -1e-5):
                    gated.copy_(whole + e * unit)
                    losses.append(float(module(x).square().sum()))
                gated.copy_(whole)
            gradient = (losses[0] - losses[1]) / 2e-5
            assert float(gradients[tuple(cell)]) == pytest.approx(gradient, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("name", modules())
def test_units_are_all_there_is_and_cost_what_is_stored(name):
    module = modules()[name]
    grids = unit_grids({"": module}, BLOCK, 8)
    stored = sum(int(grid.present.sum()) * grid.unit_bytes for grid in grids)
    if name == "dense":
        assert stored == 64 * 128 * 4 + 4 * 8 * 4  # values, and an index per block
        return
    pointers = 5 * 4 if name != "low rank" else 0
    assert stored == module.counts().stored_bytes - pointers - 64 * 4  # type: ignore[operator]


@pytest.mark.parametrize("name", modules())
def test_zeroed_units_leave_the_others_alone(name):
    module = modules()[name]
    if name == "both":
        nn.init.normal_(module.get_parameter("values"))
    for grid in unit_grids({"": module}, BLOCK, 8):
        loss_of(module).backward()
        before = grid.gate_gradients()
        gone = grid.present & (torch.rand(grid.present.shape) < 0.5)
        grid.zero(gone)
        after = grid.gate_gradients()  # of the same gradient
        assert (after[gone] == 0).all()
        torch.testing.assert_close(after[~gone], before[~gone])
        module.zero_grad()


def test_a_rank_is_a_multiple():
    with pytest.raises(ValueError, match="rank 12; expected a multiple of 8"):
        RankSlices(LowRankLinear(64, 64, 12), 8)


def test_without_a_gradient_there_are_no_gate_gradients():
    with pytest.raises(ValueError, match="no gradient"):
        RankSlices(LowRankLinear(64, 64, 8), 8).gate_gradients()


def test_the_best_per_byte_are_kept_in_whole_groups():
    small, large = RankSlices(LowRankLinear(16, 16, 8), 2), RankSlices(LowRankLinear(48, 48, 4), 2)
    assert (small.unit_bytes, large.unit_bytes) == (128, 384)
    scores = [torch.tensor([[1, 9, 2, 8, 3, 7, 4, 6]]), torch.tensor([[3.0, 30, 40, 2]])]
    kept = select_units([small, large], [s.float() for s in scores], budget=2 * 384 + 4 * 128)
    # score per byte of pairs: 17 / 256, 13 / 256, 7 / 256, 3 / 256 and 70 / 768, 5 / 768
    assert kept[0].int().tolist() == [[0, 1, 0, 1, 0, 1, 0, 1]]
    assert kept[1].int().tolist() == [[0, 1, 1, 0]]


def test_a_layer_keeps_its_least_whatever_it_is_worth():
    units = [RankSlices(LowRankLinear(16, 16, 4), 2), RankSlices(LowRankLinear(16, 16, 4), 2)]
    kept = select_units(units, [torch.zeros(1, 4), torch.ones(1, 4)], budget=0)
    assert [int(mask.sum()) for mask in kept] == [2, 2]


def test_blocks_of_each_row_go_in_packs():
    module = BlockSparseLinear(128, 64, BLOCK, 1.0)
    grid = StoredBlocks(module, min_groups=0)
    assert grid.group_size == 4
    (kept,) = select_units([grid], [torch.rand(4, 8)], budget=7 * 4 * grid.unit_bytes)
    assert int(kept.sum()) == 28
    assert set(kept.sum(1).tolist()) <= {4, 8}


def test_what_is_absent_is_never_kept():
    grid = DenseBlocks(nn.Linear(128, 64), BLOCK)
    scores = torch.rand(4, 8)
    scores[:, 4:] = -torch.inf
    (kept,) = select_units([grid], [scores], budget=1e9)
    assert kept[:, :4].all()
    assert not kept[:, 4:].any()
