"""The op `low_rank_linear`."""

import pytest
import torch
from torch.nn import functional as F

from lada_ops import low_rank_linear
from tests.kernels.operands import factors, normal
from tests.ops.op_suite import OpSuite
from tests.ops.op_transform_suite import OpTransformSuite

FP64 = {"dtype": torch.float64, "device": torch.device("cpu")}


class TestOp(OpSuite):
    stem = "low_rank_linear"


class TestOpTransforms(OpTransformSuite):
    stem = "low_rank_linear"


class TestGroups:
    """Three pairs of factors, as of query, key and value."""

    @pytest.fixture
    def pairs(self):
        return [factors(4, 6, 2, **FP64) for _ in range(3)]

    @pytest.fixture
    def joint(self, pairs):
        return torch.cat([u for u, _ in pairs]), torch.cat([v for _, v in pairs])

    def test_are_linears_side_by_side(self, pairs, joint):
        (u, v), x, bias = joint, normal(5, 6, **FP64), normal(12, **FP64)
        want = torch.cat([F.linear(F.linear(x, v), u) for u, v in pairs], -1) + bias
        torch.testing.assert_close(low_rank_linear(x, u, v, bias, groups=3), want)

    def test_gradients(self, joint):
        tensors = [normal(5, 6, **FP64), *joint, normal(12, **FP64)]
        tensors = [t.requires_grad_() for t in tensors]

        def function(x, u, v, bias):
            op = torch.ops.lada.low_rank_linear
            return op(x, u, v, bias, "gelu", None, groups=3)

        assert torch.autograd.gradcheck(function, tensors)

    @pytest.mark.parametrize("groups", [0, -1, 2, 5])
    def test_refuses_a_number_that_does_not_fit(self, joint, groups):
        x = normal(5, 6, **FP64)
        with pytest.raises(ValueError, match=f"low_rank_linear: .*{groups}.* expected"):
            low_rank_linear(x, *joint, groups=groups)


@pytest.mark.parametrize("groups", [1, 3])
class TestGradientOps:
    """`torch.ops.lada.low_rank_linear_dx` and `_dfactors`, which training runs on."""

    @pytest.fixture
    def pairs(self, groups):
        return [factors(4, 6, 2, **FP64) for _ in range(groups)]

    @pytest.fixture
    def joint(self, pairs):
        return [torch.cat(side).requires_grad_() for side in zip(*pairs, strict=True)]

    @pytest.fixture
    def dy(self, groups):
        return normal(5, 4 * groups, **FP64).requires_grad_()

    @pytest.fixture
    def sides(self, groups):
        """x, t and the gradient of t."""
        features = 6, 2 * groups, 2 * groups
        return [normal(5, n, **FP64).requires_grad_() for n in features]

    def test_dx_is_the_way_back(self, dy, pairs, joint, groups):
        dx, dt = torch.ops.lada.low_rank_linear_dx(dy, *joint, groups)
        want = [part @ u for part, (u, _) in zip(dy.chunk(groups, 1), pairs, strict=True)]
        torch.testing.assert_close(dt, torch.cat(want, 1))
        want = sum(part @ v for part, (_, v) in zip(want, pairs, strict=True))
        torch.testing.assert_close(dx, want)

    def test_dfactors_are_sums_over_tokens(self, dy, sides, groups):
        x, t, dt = sides
        du, dv, dbias = torch.ops.lada.low_rank_linear_dfactors(dy, *sides, groups)
        pairs = zip(dy.chunk(groups, 1), t.chunk(groups, 1), strict=True)
        torch.testing.assert_close(du, torch.cat([a.T @ b for a, b in pairs]))
        torch.testing.assert_close(dv, dt.T @ x)
        torch.testing.assert_close(dbias, dy.sum(0))

    def test_opcheck(self, dy, sides, joint, groups):
        ops = torch.ops.lada
        torch.library.opcheck(ops.low_rank_linear_dx.default, (dy, *joint, groups))
        torch.library.opcheck(ops.low_rank_linear_dfactors.default, (dy, *sides, groups))

    def test_gradients(self, dy, sides, joint, groups):
        ops = torch.ops.lada

        def dx(*tensors):
            return ops.low_rank_linear_dx(*tensors, groups)

        def dfactors(*tensors):
            return ops.low_rank_linear_dfactors(*tensors, groups)

        assert torch.autograd.gradcheck(dx, [dy, *joint])
        assert torch.autograd.gradcheck(dfactors, [dy, *sides])


class TestDense:
    """The product of the factors, which a caller may keep."""

    def test_is_not_needed_on_the_cpu(self):
        u, v = factors(4, 6, 2, **FP64)
        x, wrong = normal(5, 6, **FP64), normal(4, 6, **FP64)
        want = low_rank_linear(x, u, v)
        torch.testing.assert_close(low_rank_linear(x, u, v, dense=wrong), want)

    @pytest.mark.parametrize("shape", [(6, 4), (4, 5), (4,)], ids=str)
    def test_refuses_another_shape(self, shape):
        u, v = factors(4, 6, 2, **FP64)
        with pytest.raises(ValueError, match=r"low_rank_linear: dense .* expected \(4, 6\)"):
            low_rank_linear(normal(5, 6, **FP64), u, v, dense=normal(*shape, **FP64))
