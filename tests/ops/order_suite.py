"""Suite for `order` of a block-sparse op; `tests/ops/test_<stem>.py` names the op."""

import pytest
import torch

import lada_ops
from tests.ops.operands import Operands, assert_matches, operands, torch_op

ROWS = 3  # block rows of the pattern "random"


class OrderSuite:
    """The order of the block rows, which a kernel starts by, is no part of the result."""

    stem: str

    def call(self, given: Operands, order: torch.Tensor):
        op = getattr(lada_ops, self.stem)
        return op(given.x, *given.weights, given.bias, residual=given.residual, order=order)

    def test_leaves_the_result(self):
        given = operands(self.stem, dtype=torch.float64)
        want = torch_op(self.stem)(*given.args)
        assert_matches(self.call(given, torch.tensor([2, 0, 1], dtype=torch.int32)), want)

    def test_leaves_the_gradients(self):
        given = operands(self.stem, dtype=torch.float64)
        ours, other = given.requires_grad(), given.requires_grad()
        self.call(ours, torch.tensor([2, 0, 1], dtype=torch.int32)).square().sum().backward()
        torch_op(self.stem)(*other.args).square().sum().backward()
        for got, want in zip(ours.grads, other.grads, strict=True):
            assert_matches(got, want)

    def test_opcheck(self):
        given = operands(self.stem, activation="gelu").requires_grad()
        order = torch.arange(ROWS, dtype=torch.int32)
        args = *given.args, None, None, 0.0, order
        torch.library.opcheck(torch_op(self.stem), args)

    @pytest.mark.parametrize(
        ("order", "error", "words"),
        [
            (torch.arange(ROWS), TypeError, "torch.int64"),
            (torch.arange(ROWS, dtype=torch.int32)[None], TypeError, r"order \(1, 3\)"),
            (torch.arange(ROWS, dtype=torch.int32, device="meta"), TypeError, "on meta"),
            (torch.arange(ROWS - 1, dtype=torch.int32), ValueError, r"order \(2,\)"),
        ],
        ids=["dtype", "dimensions", "device", "length"],
    )
    def test_refuses_another(self, order, error, words):
        with pytest.raises(error, match=f"{self.stem}: .*{words}.*expected"):
            self.call(operands(self.stem), order)
