"""The fp64 answer of a case, and the ways to it that run on the CPU."""

import pytest
import torch
import torch.nn.functional as F
from torch.sparse import SparseSemiStructuredTensorCUTLASS

from benchmarks.suite.backward import flattened, gradients, training_step
from benchmarks.suite.cases import Case, tiny_cases
from benchmarks.suite.problem import EPS, Operands, copied
from benchmarks.suite.variants import forward, our_ways

CPU = torch.device("cpu")
FORWARD = [case for case in tiny_cases() if not case.backward]
BACKWARD = [case for case in tiny_cases() if case.backward]
IN_TORCH = {"dense", "dense, GELU in cuBLAS", "two products", "four products", "autograd", "our op"}


def case_of(stem, **changes):
    case = next(case for case in FORWARD if case.stem == stem)
    return Case(**(vars(case) | changes))


@pytest.mark.parametrize("epilogue", ["plain", "gelu", "norm"])
def test_the_answer_is_the_formula(epilogue):
    operands = Operands.draw(case_of("low_rank_linear", epilogue=epilogue), CPU, torch.float64)
    x, u, v = operands.x, operands.factors["u"], operands.factors["v"]
    want = x @ v.T @ u.T + operands.bias
    if epilogue == "gelu":
        want = F.gelu(want)
    if epilogue == "norm":
        residual, weight, bias = operands.finish.values()
        want = F.layer_norm(want + residual, weight.shape, weight, bias, EPS)
    torch.testing.assert_close(operands.expected(), want)


def test_each_group_has_factors_of_its_own():
    operands = Operands.draw(
        case_of("low_rank_linear", out_features=96, groups=3), CPU, torch.float64
    )
    u, v = operands.factors["u"].chunk(3), operands.factors["v"].chunk(3)
    want = torch.cat([u_part @ v_part for u_part, v_part in zip(u, v, strict=True)])
    torch.testing.assert_close(operands.weight(), want)


def test_a_sum_of_formats_is_the_sum_of_weights():
    operands = Operands.draw(case_of("sparse_low_rank_linear"), CPU, torch.float64)
    u, v = operands.factors["u"], operands.factors["v"]
    assert operands.bsr is not None
    torch.testing.assert_close(operands.weight(), u @ v + operands.bsr.to_dense())


def test_the_feed_forward_has_both_linears():
    operands = Operands.draw(case_of("low_rank_ffn"), CPU, torch.float64)
    f = operands.factors
    hidden = F.gelu(operands.x @ f["v"].T @ f["u"].T + operands.bias)
    residual, weight, bias = operands.finish.values()
    y = hidden @ f["v2"].T @ f["u2"].T + f["bias2"] + residual
    want = F.layer_norm(y, weight.shape, weight, bias, EPS)
    torch.testing.assert_close(operands.expected(), want)


@pytest.mark.parametrize("case", FORWARD + BACKWARD, ids=lambda case: f"{case.stem} {case.key}")
def test_what_torch_computes_on_the_cpu_is_right(case):
    make = training_step if case.backward else forward
    problem = make(case, CPU, torch.float32)
    ways = IN_TORCH & set(problem.ways)
    assert "dense" in ways
    for name in ways:
        entry = problem.ways[name]()
        expected = problem.expected if entry.expected is None else entry.expected
        got = entry.read(entry.call(**entry.tensors))
        # GELU by tanh, in cuBLAS, is off by 5e-4
        torch.testing.assert_close(got.double(), expected.double(), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("stem", ["low_rank_linear", "block_sparse_linear", "low_rank_ffn"])
def test_the_work_of_ours_is_that_of_the_stored_weight(stem):
    case = case_of(stem)
    problem = forward(case, CPU, torch.float32)
    ours, dense = problem.ways["dispatch"](), problem.ways["dense"]()
    stored = sum(
        t.numel()
        for name, t in ours.tensors.items()
        if name in ("u", "v", "values", "u1", "v1", "u2", "v2")
    )
    assert ours.macs == stored
    weights = [t for name, t in dense.tensors.items() if name in ("weight", "up", "down")]
    assert dense.macs == sum(t.numel() for t in weights) > 0


def test_dispatch_is_given_the_dense_weight_and_the_others_are_not():
    ways = forward(case_of("low_rank_linear"), CPU, torch.float32).ways
    assert "dense" in ways["dispatch"]().tensors
    assert "dense" not in ways["one_launch"]().tensors


@pytest.mark.parametrize(
    ("case", "names"),
    [
        (Case("low_rank_ffn", 16, 64, 64, rank=128, hidden=128), {"one_launch", "split"}),
        (Case("low_rank_ffn", 16, 64, 64, rank=192, hidden=128), set()),
        (Case("block_sparse_linear", 16, 64, 64, block=(64, 16), density=0.5), {"weights_left"}),
        (Case("block_sparse_linear", 16, 64, 64, block=(32, 32), density=0.5), set()),
        (Case("block_sparse_linear", 512, 64, 64, block=(64, 16), density=0.5), set()),
    ],
)
def test_only_ways_that_can_compute_a_case_are_tried(case, names):
    special = {"one_launch", "split"} if case.hidden else {"weights_left"}
    assert set(our_ways(case)) & special == names


def test_a_training_step_is_three_products():
    problem = training_step(BACKWARD[0], CPU, torch.float32)
    assert problem.ways["our op"]().macs == 3 * BACKWARD[0].rank * (48 + 80)
    assert problem.ways["dense"]().macs == 3 * 48 * 80


class TestGradients:
    def test_they_are_those_of_all_floating_point_operands(self):
        x, y = torch.tensor([2.0]), torch.tensor([5.0])
        index = torch.tensor([0])
        got = gradients(
            lambda x, y, index: (x * y)[index], {"x": x, "y": y, "index": index}, torch.ones(1)
        )
        assert [g.item() for g in got] == [5.0, 2.0]
        assert not x.requires_grad

    def test_a_wrong_small_gradient_shows_beside_a_large_one(self):
        right = [torch.full((4,), 1e6), torch.full((4,), 1e-6)]
        scales = [float(g.norm()) for g in right]
        want = flattened(right, scales)
        got = flattened([right[0], 2 * right[1]], scales)
        assert (got - want).norm() / want.norm() > 0.5


@pytest.mark.filterwarnings("ignore:The PyTorch API of Sparse")
def test_a_2to4_weight_is_copied_part_by_part(monkeypatch):
    packed, meta = torch.ones(4, 4), torch.ones(4, 1, dtype=torch.int16)
    weight = SparseSemiStructuredTensorCUTLASS(torch.Size([4, 8]), packed, meta, None, None, None)
    # torch before 2.12 has no clone for it
    monkeypatch.delitem(weight.SPARSE_DISPATCH, torch.ops.aten.clone, raising=False)
    copy = copied(weight)
    assert (type(copy), copy.shape) == (type(weight), weight.shape)
    for name in ("packed", "meta"):
        part, own = getattr(copy, name), getattr(weight, name)
        assert torch.equal(part, own)
        assert part.data_ptr() != own.data_ptr()
