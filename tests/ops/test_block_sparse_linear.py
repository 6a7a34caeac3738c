"""The op `block_sparse_linear`."""

import pytest
import torch

from tests.ops.op_suite import OpSuite
from tests.ops.op_transform_suite import OpTransformSuite
from tests.ops.operands import PATTERNS, assert_matches, bsr_by_hand, operands
from tests.ops.order_suite import OrderSuite


class TestOp(OpSuite):
    stem = "block_sparse_linear"


class TestOpTransforms(OpTransformSuite):
    stem = "block_sparse_linear"


class TestOrder(OrderSuite):
    stem = "block_sparse_linear"


class TestGradientOps:
    """`torch.ops.lada.block_sparse_linear_dx` and `_dvalues`, which training runs on."""

    @pytest.fixture
    def given(self):
        return operands("block_sparse_linear", (4,), "empty-rows", (3, 2), dtype=torch.float64)

    @pytest.fixture
    def dy(self, given):
        return torch.randn_like(given.residual)

    def test_dx_is_a_dense_product(self, given, dy):
        dx = torch.ops.lada.block_sparse_linear_dx(dy, *given.weights, given.x.shape[1])
        assert_matches(dx, dy @ given.dense)

    def test_dvalues_are_blocks_of_a_dense_product(self, given, dy):
        crow, col, values = given.weights
        dvalues = torch.ops.lada.block_sparse_linear_dvalues(dy, given.x, crow, col, 3, 2)
        _, _, want = bsr_by_hand(dy.T @ given.x, PATTERNS["empty-rows"], (3, 2))
        assert_matches(dvalues, want)

    def test_opcheck(self, given, dy):
        crow, col, values = given.weights
        dy, x, values = (t.detach().clone().requires_grad_() for t in (dy, given.x, values))
        ops = torch.ops.lada
        torch.library.opcheck(
            ops.block_sparse_linear_dx.default, (dy, crow, col, values, x.shape[1])
        )
        torch.library.opcheck(ops.block_sparse_linear_dvalues.default, (dy, x, crow, col, 3, 2))
