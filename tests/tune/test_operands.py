import pytest
import torch

from lada_ops.ops import reference
from lada_ops.tune import Case
from lada_ops.tune.operands import EPS, Operands

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
    """Output in fp64 of the op's reference for these arguments of its launcher."""
    given = {k: t.double() if t.is_floating_point() else t for k, t in operands.items()}
    given.pop("order", None)
    weight, bias = given.pop("norm_weight", None), given.pop("norm_bias", None)
    norm = None if weight is None or bias is None else reference.Norm(weight, bias, EPS)
    activation = "gelu" if case.epilogue == "fused" or case.parts.hidden else "none"
    epilogue = activation, given.pop("residual", None), norm
    groups = {"groups": case.parts.groups} if case.parts.groups > 1 else {}
    return getattr(reference, f"{case.stem}_ref")(*given.values(), *epilogue, **groups)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_expected_output_is_that_of_the_reference(case):
    operands = Operands.draw(case, CPU)
    want = by_reference(case, operands.launcher_arguments)
    torch.testing.assert_close(operands.expected(), want)
    rows = torch.tensor([0, 5])
    torch.testing.assert_close(operands.expected(rows=rows), want[rows])


def test_every_group_has_factors_of_its_own():
    operands = Operands.draw(Case(32, 48, "r32x3", "plain", 8, "float32"), CPU)
    u, v = operands.weights["u"].double().chunk(3), operands.weights["v"].double().chunk(3)
    want = torch.cat([u_part @ v_part for u_part, v_part in zip(u, v, strict=True)])
    torch.testing.assert_close(operands.dense_weights(), [want])


def test_the_weight_of_a_sum_is_the_sum_of_both():
    operands = Operands.draw(Case(64, 64, "r32+16x16-d50", "plain", 8, "float32"), CPU)
    u, v = operands.weights["u"].double(), operands.weights["v"].double()
    assert operands.bsr is not None
    torch.testing.assert_close(operands.dense_weights(), [u @ v + operands.bsr.to_dense().double()])


@pytest.mark.parametrize("epilogue", ["plain", "fused", "norm"])
def test_a_feed_forward_is_two_linears_with_a_gelu_between(epilogue):
    operands = Operands.draw(Case(32, 48, "r32-64-r32", epilogue, 8, "float32"), CPU)
    ours = {name: t.double() for name, t in operands.launcher_arguments.items()}
    hidden = ours["x"] @ ours["v1"].T @ ours["u1"].T + ours["bias1"]
    want = torch.nn.functional.gelu(hidden) @ ours["v2"].T @ ours["u2"].T + ours["bias2"]
    assert ("residual" in ours) == (epilogue != "plain")
    if epilogue != "plain":
        want = want + ours["residual"]
    if epilogue == "norm":
        want = (want - want.mean(1, keepdim=True)) / (want.var(1, False, keepdim=True) + EPS).sqrt()
        want = want * ours["norm_weight"] + ours["norm_bias"]
    torch.testing.assert_close(operands.expected(), want)


def test_outputs_keep_the_variance_of_x():
    for case in CASES[:2]:
        assert 0.5 < float(Operands.draw(case, CPU).expected().std()) < 4
