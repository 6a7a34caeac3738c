import json

import pytest
import torch
from torch import nn

from lada_ops import LowRankLinear, SparseLowRankLinear
from lada_ops.distill.pruner import UnitPruner
from lada_ops.distill.schedules import Span, cubic
from lada_ops.distill.units import RankSlices, UnitGrid, unit_grids

SPAN = Span(0.0, 0.5)


def pruner_of(module: nn.Module, target: float, **options) -> UnitPruner:
    return UnitPruner(unit_grids({"": module}, (16, 16), 2), target, SPAN, **options)


def live(module: LowRankLinear) -> list[int]:
    return (module.u != 0).any(0).nonzero().flatten().tolist()


def step(pruner: UnitPruner, module: nn.Module, number: int, steps: int = 20) -> None:
    module.zero_grad()
    torch.manual_seed(number)
    module(torch.randn(4, 64)).square().sum().backward()
    pruner.observe()
    pruner.prune(number, steps)


def stored(grids: list[UnitGrid]) -> int:
    return sum(int(grid.present.sum()) * grid.unit_bytes for grid in grids)


def test_the_bytes_left_follow_the_cubic_schedule():
    module = SparseLowRankLinear(64, 64, 16, (16, 16), 0.5)
    nn.init.normal_(module.values)
    pruner = pruner_of(module, target=3000)
    start = stored(pruner.grids)
    for number in range(1, 21):
        step(pruner, module, number)
        budget = cubic(start, 3000, SPAN.progress(number, 20))
        pairs = zip(pruner.kept, pruner.grids, strict=True)
        kept = sum(int(mask.sum()) * grid.unit_bytes for mask, grid in pairs)
        largest = max(grid.unit_bytes * grid.group_size for grid in pruner.grids)
        assert budget - largest <= kept <= budget
        assert pruner.done == (number >= 10)


@pytest.mark.parametrize("score", ["second_order", "movement"])
def test_what_is_dropped_is_zero_and_stays_so(score):
    module = LowRankLinear(64, 64, 16)
    pruner = pruner_of(module, target=4 * 512, score=score)
    gone: set[int] = set()
    for number in range(1, 21):
        with torch.no_grad():
            module.u.add_(0.01)  # as an optimizer with momentum would
            module.v.add_(0.01)
        step(pruner, module, number)
        left = set(live(module))
        assert not left & gone
        gone = set(range(16)) - left
    assert len(gone) == 12
    assert not module.v[list(gone)].any()


def test_second_order_drops_what_the_loss_depends_on_least():
    module = LowRankLinear(64, 64, 16)
    with torch.no_grad():
        module.u[:, ::2] *= 1e-2
    pruner = pruner_of(module, target=8 * 512)
    for number in range(1, 21):
        step(pruner, module, number)
    assert live(module) == list(range(1, 16, 2))


def test_movement_drops_what_the_loss_pushes_to_zero():
    module = LowRankLinear(64, 64, 8)
    pruner = pruner_of(module, target=4 * 512, score="movement")
    # the loss falls along -w in the even slices, along w in the odd
    sign = torch.tensor([1.0, -1.0] * 4)
    module.u.grad = module.u.detach() * sign
    pruner.observe()
    pruner.prune(20, 20)
    assert live(module) == [1, 3, 5, 7]


def test_second_order_is_a_running_mean_of_squared_gate_gradients():
    module = LowRankLinear(64, 64, 8)
    pruner = pruner_of(module, target=512)
    want = torch.zeros(1, 8)
    for number in range(3):
        module.u.grad = torch.full_like(module.u, float(number + 1))
        pruner.observe()
        gradients = (number + 1) * module.u.detach().sum(0, keepdim=True)
        want = 0.95 * want + 0.05 * gradients.square()
    torch.testing.assert_close(pruner.importance[0], want)


def test_gradients_that_overflowed_are_not_looked_at():
    module = LowRankLinear(64, 64, 8)
    pruner = pruner_of(module, target=512)
    module.u.grad = torch.full_like(module.u, float("inf"))
    pruner.observe()
    assert not pruner.importance[0].any()


def test_a_state_through_json_goes_on_the_same():
    modules = [LowRankLinear(64, 64, 16) for _ in range(2)]
    modules[1].load_state_dict(modules[0].state_dict())
    first, other = (pruner_of(module, target=4 * 512) for module in modules)
    for number in range(1, 8):
        step(first, modules[0], number)
    modules[1].load_state_dict(modules[0].state_dict())
    other.load_state(json.loads(json.dumps(first.state())))
    for number in range(8, 21):
        step(first, modules[0], number)
        step(other, modules[1], number)
    assert torch.equal(modules[0].u, modules[1].u)
    assert first.state() == other.state()


def test_scores_have_names():
    with pytest.raises(ValueError, match="score 'size'; expected one of"):
        UnitPruner([RankSlices(LowRankLinear(64, 64, 8), 8)], 512, SPAN, score="size")  # type: ignore[arg-type]
