import pytest
import torch

from lada_ops.compression.fit import ErrorNorm, fit
from lada_ops.compression.plan import OBJECTIVES, LayerPlan
from lada_ops.formats.low_rank import LowRank
from tests.approximation.weights import inputs_and_gram

OUT, IN = 24, 40
LOW_RANK = LayerPlan("low_rank", IN, OUT, rank=5)
BLOCK_SPARSE = LayerPlan("block_sparse", IN, OUT, block=(4, 5), density=0.25)
BOTH = LayerPlan("sparse_low_rank", IN, OUT, rank=3, block=(4, 5), density=0.125)


@pytest.fixture
def layer():
    """A weight, and the matrices of its inputs and its outputs, of sizes far apart."""
    scales = torch.logspace(-2, 2, IN).double()[torch.randperm(IN)]
    inputs = inputs_and_gram(IN)[1] * torch.outer(scales, scales)
    scales = torch.logspace(-2, 2, OUT).double()[torch.randperm(OUT)]
    outputs = inputs_and_gram(OUT)[1] * torch.outer(scales, scales)
    return torch.randn(OUT, IN).double(), inputs, outputs


def cost(norm, weight, fitted):
    rest = weight - fitted.to_dense()
    if norm.inputs is not None:
        rest = rest @ torch.linalg.cholesky(norm.inputs)
    if norm.outputs is not None:
        rest = torch.linalg.cholesky(norm.outputs).T @ rest
    return float(rest.square().sum())


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_low_rank_is_best_by_its_own_objective(layer, objective):
    weight, *seen = layer
    norm = ErrorNorm.of(objective, *seen)
    own = cost(norm, weight, fit(weight, LOW_RANK, norm))
    for other in OBJECTIVES:
        rival = fit(weight, LOW_RANK, ErrorNorm.of(other, *seen))
        assert own <= cost(norm, weight, rival) * (1 + 1e-9)


@pytest.mark.parametrize("plan", [BLOCK_SPARSE, BOTH], ids=lambda plan: plan.format)
@pytest.mark.parametrize("objective", ["activations", "outputs"])
def test_blocks_are_better_by_their_own_objective_than_by_none(layer, objective, plan):
    weight, *seen = layer
    norm = ErrorNorm.of(objective, *seen)
    assert cost(norm, weight, fit(weight, plan, norm)) < cost(norm, weight, fit(weight, plan))


def test_fisher_keeps_the_rows_whose_errors_cost_most():
    """One rank holds one of the two rows: the one whose errors cost more, though it is smaller."""
    weight = torch.tensor([[3.0, 0.0], [0.0, 1.0]]).double()
    norm = ErrorNorm.of("fisher", torch.eye(2).double(), torch.tensor([1.0, 1e4]).double().diag())
    got = fit(weight, LayerPlan("low_rank", 2, 2, rank=1), norm)
    torch.testing.assert_close(got.to_dense(), torch.tensor([[0.0, 0.0], [0.0, 1.0]]).double())


def test_scales_do_not_see_how_inputs_go_together(layer):
    weight, inputs, outputs = layer
    alone = ErrorNorm.of("scales", inputs.diagonal().diag(), outputs)
    torch.testing.assert_close(ErrorNorm.of("scales", inputs, outputs).inputs, alone.inputs)


@pytest.mark.parametrize("plan", [BLOCK_SPARSE, BOTH], ids=lambda plan: plan.format)
def test_selection_decides_on_the_blocks(plan):
    """Inputs are of like sizes, so that only their correlation makes the choices differ."""
    x = torch.randn(IN, IN).double() @ torch.randn(IN, 100).double()
    weight, norm = torch.randn(OUT, IN).double(), ErrorNorm(x @ x.T)
    by_size, second_order = (fit(weight, plan, norm, s) for s in ("wanda", "second_order"))
    assert cost(norm, weight, second_order) < cost(norm, weight, by_size)


@pytest.mark.parametrize("plan", [LOW_RANK, BLOCK_SPARSE, BOTH], ids=lambda plan: plan.format)
def test_dtype_is_kept(layer, plan):
    weight, *seen = layer
    got = fit(weight.bfloat16(), plan, ErrorNorm.of("outputs", *seen))
    tensor = got.u if isinstance(got, LowRank) else got.to_dense()
    assert tensor.dtype == torch.bfloat16
