from functools import partial

import pytest
import torch

from lada_kernels.variants import Variant
from lada_ops.latency import Rotation
from lada_ops.ops import reference
from lada_ops.tune import Case
from lada_ops.tune.problem import CHECKED_ROWS, EPS, Problem

CPU = torch.device("cpu")
CASES = [
    Case(32, 48, "r32", "plain", 8, "float32"),
    Case(32, 48, "r32", "fused", 8, "float32"),
    Case(32, 48, "r32", "norm", 8, "float32"),
    Case(64, 64, "16x16-d50", "fused", 8, "float32"),
    Case(64, 64, "r32+16x16-d50", "norm", 8, "float32"),
    Case(64, 96, "r32x3+16x16-d50", "plain", 8, "float32"),
]


def by_reference(case, operands):
    """What the op of `case` gives for these operands of its launcher, in fp64."""
    given = {k: t.double() if t.is_floating_point() else t for k, t in operands.items()}
    given.pop("order", None)
    weight, bias = given.pop("norm_weight", None), given.pop("norm_bias", None)
    norm = None if weight is None or bias is None else reference.Norm(weight, bias, EPS)
    if case.parts.groups > 1:
        given["groups"] = case.parts.groups
    activation = "gelu" if case.epilogue == "fused" or case.parts.hidden else "none"
    return getattr(reference, f"{case.stem}_ref")(**given, activation=activation, norm=norm)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_answer_is_that_of_the_reference(case):
    problem = Problem.draw(case, CPU)
    torch.testing.assert_close(problem.expected, by_reference(case, problem.ours))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_dense_product_gives_the_same_answer(case):
    problem = Problem.draw(case, CPU)
    candidate = problem.candidate(Variant("dense"), l2_bytes=1)
    assert candidate.error(candidate.calls[0](), candidate.expect()) < 1e-5


def test_groups_are_multiplied_each_by_its_own():
    problem = Problem.draw(Case(32, 48, "r32x3", "plain", 8, "float32"), CPU)
    x, u, v, bias = (problem.ours[name].double() for name in ("x", "u", "v", "bias"))
    thirds = [x @ v[32 * g : 32 * g + 32].T @ u[16 * g : 16 * g + 16].T for g in range(3)]
    torch.testing.assert_close(problem.expected, torch.cat(thirds, 1) + bias)


@pytest.mark.parametrize("epilogue", ["plain", "fused", "norm"])
def test_a_feed_forward_is_two_products_with_a_gelu_between(epilogue):
    problem = Problem.draw(Case(32, 48, "r32-64-r32", epilogue, 8, "float32"), CPU)
    ours = {name: t.double() for name, t in problem.ours.items()}
    hidden = ours["x"] @ ours["v1"].T @ ours["u1"].T + ours["bias1"]
    want = torch.nn.functional.gelu(hidden) @ ours["v2"].T @ ours["u2"].T + ours["bias2"]
    assert ("residual" in ours) == (epilogue != "plain")
    if epilogue != "plain":
        want = want + ours["residual"]
    if epilogue == "norm":
        want = (want - want.mean(1, keepdim=True)) / (want.var(1, False, keepdim=True) + EPS).sqrt()
        want = want * ours["norm_weight"] + ours["norm_bias"]
    torch.testing.assert_close(problem.expected, want)
    candidate = problem.candidate(Variant("dense"), l2_bytes=1)
    assert candidate.error(candidate.calls[0](), candidate.expect()) < 1e-5


def test_outputs_keep_the_variance_of_x():
    for case in CASES[:2]:
        assert 0.5 < float(Problem.draw(case, CPU).expected.std()) < 4


def test_rows_that_are_checked_reach_from_the_first_to_the_last():
    case = Case(16, 16, "r32", "plain", 4 * CHECKED_ROWS, "float32")
    problem = Problem.draw(case, CPU)
    assert problem.expected.shape == (CHECKED_ROWS, 16)
    assert (problem.rows[0], problem.rows[-1]) == (0, case.tokens - 1)
    assert (problem.rows.diff() > 0).all()


def test_a_wrong_row_among_them_is_seen():
    problem = Problem.draw(CASES[0], CPU)
    candidate = problem.candidate(Variant("dense"), l2_bytes=1)
    output = candidate.calls[0]()
    output[-1] += 1
    with pytest.raises(RuntimeError, match="no time is reported"):
        candidate.error(output, candidate.expect())


def test_copies_overflow_the_cache_and_share_nothing():
    problem = Problem.draw(CASES[0], CPU)
    touched = 4 * (8 * 32 + 32 * 48 + 48 + 8 * 48)  # x, weight, bias and output
    rotation = problem.candidate(Variant("dense"), l2_bytes=10 * touched).run
    assert isinstance(rotation, Rotation)
    assert len(rotation.calls) == 30
    weights = {
        call.keywords["weight"].data_ptr() for call in rotation.calls if isinstance(call, partial)
    }
    assert len(weights) == 30
