"""Workloads: the implementations that run on the CPU give the expected output."""

import pytest
import torch
from torch.sparse import SparseSemiStructuredTensorCUTLASS

from benchmarks.suite.backward import flattened, gradients, training_step
from benchmarks.suite.cases import SuiteCase, tiny_cases
from benchmarks.suite.forward import forward, our_variants
from benchmarks.suite.workload import copied

CPU = torch.device("cpu")
FORWARD = [case for case in tiny_cases("float32") if not case.backward]
BACKWARD = [case for case in tiny_cases("float32") if case.backward]
IN_TORCH = {"dense", "dense, GELU in cuBLAS", "two products", "four products", "autograd", "our op"}


def case_of(stem):
    return next(case for case in FORWARD if case.stem == stem)


@pytest.mark.parametrize("case", FORWARD + BACKWARD, ids=str)
def test_implementations_in_torch_give_the_expected_output(case):
    make = training_step if case.backward else forward
    workload = make(case, CPU)
    names = IN_TORCH & set(workload.implementations)
    assert "dense" in names
    for name in names:
        made = workload.implementations[name]()
        expected = workload.expected if made.expected is None else made.expected
        got = made.read(made.call(**made.tensors))
        # GELU by tanh, in cuBLAS, is off by 5e-4
        torch.testing.assert_close(got.double(), expected.double(), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("stem", ["low_rank_linear", "block_sparse_linear", "low_rank_ffn"])
def test_the_work_of_ours_is_that_of_the_stored_weight(stem):
    implementations = forward(case_of(stem), CPU).implementations
    ours, dense = implementations["dispatch"](), implementations["dense"]()
    stored = sum(
        t.numel()
        for name, t in ours.tensors.items()
        if name in ("u", "v", "values", "u1", "v1", "u2", "v2")
    )
    assert ours.macs == stored
    weights = [
        t for name, t in dense.tensors.items() if name in ("weight", "intermediate", "output")
    ]
    assert dense.macs == sum(t.numel() for t in weights) > 0


def test_dispatch_is_given_the_dense_weight_and_the_others_are_not():
    implementations = forward(case_of("low_rank_linear"), CPU).implementations
    assert "dense" in implementations["dispatch"]().tensors
    assert "dense" not in implementations["one_launch"]().tensors


@pytest.mark.parametrize(
    ("case", "names"),
    [
        (SuiteCase(64, 64, "r128-128-r128", tokens=16), {"one_launch", "split"}),
        (SuiteCase(64, 64, "r192-128-r192", tokens=16), set()),
        (SuiteCase(64, 64, "64x16-d50", tokens=16), {"weights_left"}),
        (SuiteCase(64, 64, "32x32-d50", tokens=16), set()),
        (SuiteCase(64, 64, "64x16-d50", tokens=512), set()),
    ],
)
def test_only_variants_that_can_compute_a_case_are_listed(case, names):
    special = {"one_launch", "split"} if case.parts.hidden else {"weights_left"}
    assert set(our_variants(case)) & special == names


def test_a_training_step_is_three_products():
    implementations = training_step(BACKWARD[0], CPU).implementations
    assert implementations["our op"]().macs == 3 * 16 * (48 + 80)
    assert implementations["dense"]().macs == 3 * 48 * 80


class TestGradients:
    def test_all_floating_point_operands_have_one(self):
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
def test_a_2to4_weight_is_copied_by_its_parts(monkeypatch):
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
