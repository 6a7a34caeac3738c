"""Operands of every op for one weight pattern, with the dense weight they stand for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

import lada_ops
from lada_ops.ops import reference
from lada_ops.ops.epilogue import split_norm
from lada_ops.ops.reference import Norm
from tests.kernels.operands import dense_oracle, factors, normal, sparse_weight

# The oracle gets the operands as rounded to the dtype. fp64: its own rounding. fp32: sums of some
# hundred products in another order. fp16 and bf16: 2 to 4 roundings, of the intermediate, of the
# pre-activation and of the output, with a unit roundoff of 2^-11 and 2^-8.
TOLERANCE = {  # relative and absolute
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.float16: 3e-3,
    torch.bfloat16: 2.4e-2,
}

PATTERNS = {  # which blocks of the grid are stored; the grid also sizes the low-rank weights
    "random": torch.tensor([[1, 0, 0, 1, 1, 0, 1], [0, 1, 0, 0, 0, 0, 1], [1, 1, 0, 1, 0, 1, 0]]),
    "empty-rows": torch.tensor([[0, 0, 0], [1, 0, 1], [0, 0, 0], [0, 0, 0], [0, 1, 0], [0, 0, 0]]),
    "no-blocks": torch.zeros(3, 5),
    "full": torch.ones(2, 7),
    "one-block": torch.ones(1, 1),
    "last-corner": torch.tensor([[0, 0, 0], [0, 0, 1]]),
}
BLOCKS = [(1, 1), (7, 5), (3, 16), (16, 16), (32, 4)]


@dataclass(frozen=True)
class Operands:
    """weights: what the op takes between x and bias; dense: the same weight (out, in) in fp64."""

    x: Tensor
    weights: tuple[Tensor, ...]
    dense: Tensor
    bias: Tensor | None
    residual: Tensor | None
    activation: str = "none"
    norm: Norm | None = None

    bias_name: ClassVar[str] = "bias"

    def oracle(self) -> Tensor:
        """Expected output of the op, by dense products in fp64."""
        return dense_oracle(
            self.x, self.dense, self.bias, self.residual, self.activation, self.norm
        )

    @property
    def args(self) -> tuple[Any, ...]:
        """The positional arguments of `torch.ops.lada.<stem>`."""
        last = () if self.norm is None else split_norm(self.norm)
        return self.x, *self.weights, self.bias, self.activation, self.residual, *last

    @property
    def tensors(self) -> list[Tensor]:
        """Tensors that have gradients."""
        given = (self.x, *self.weights, self.bias, self.residual, *(self.norm or ())[:2])
        return [t for t in given if t is not None and t.is_floating_point()]

    def replace(self, **changes: Any) -> Operands:
        return replace(self, **changes)

    def double(self) -> Operands:
        return self.map(lambda t: t.double() if t.is_floating_point() else t)

    @property
    def grads(self) -> list[Tensor]:
        """The gradients of `tensors`, after a backward pass that must have reached them all."""
        grads = [t.grad for t in self.tensors if t.grad is not None]
        assert len(grads) == len(self.tensors)
        return grads

    def requires_grad(self) -> Operands:
        """Fresh leaves of the same values that record gradients."""
        return self.map(lambda t: t.detach().clone().requires_grad_(t.is_floating_point()))

    def map(self, change: Callable[[Tensor], Tensor]) -> Operands:
        """`change` applied to every tensor operand."""
        x, weights = change(self.x), tuple(map(change, self.weights))
        bias, residual = (None if t is None else change(t) for t in (self.bias, self.residual))
        norm = self.norm
        if norm is not None:
            norm = Norm(change(norm.weight), change(norm.bias), norm.eps)
        return replace(self, x=x, weights=weights, bias=bias, residual=residual, norm=norm)

    def with_tensors(self, tensors: Iterable[Tensor]) -> Operands:
        """The same operands with others in the place of `tensors`, in their order."""
        given = iter(tensors)
        return self.map(lambda t: next(given) if t.is_floating_point() else t)


class FfnOperands(Operands):
    """weights: u1, v1, bias1, u2 and v2; dense: u2 @ v2."""

    bias_name = "bias2"

    def oracle(self) -> Tensor:
        u1, v1, bias1, *_ = self.weights
        h = dense_oracle(self.x, u1.double() @ v1.double(), bias1, None, self.activation)
        return dense_oracle(h, self.dense, self.bias, self.residual, norm=self.norm)


def operands(
    stem: str,
    lead: tuple[int, ...] = (3,),
    pattern: str = "random",
    block: tuple[int, int] = (7, 5),
    rank: int = 5,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    activation: str = "none",
    bias: bool = True,
    residual: bool = True,
    norm: bool = False,
) -> Operands:
    """Operands of the op `stem`; the output keeps about the variance of x."""
    kind = {"dtype": dtype, "device": torch.device(device)}
    grid = PATTERNS[pattern].bool()
    out, cols = grid.shape[0] * block[0], grid.shape[1] * block[1]
    last = (
        normal(out, **kind) if bias else None,
        normal(*lead, out, **kind) if residual else None,
        activation,
        Norm(normal(out, **kind) + 1, normal(out, **kind), 1e-5) if norm else None,
    )
    if stem == "low_rank_ffn":
        hidden = 2 * out + 1
        u1, v1 = factors(hidden, cols, min(rank, cols), **kind)
        u2, v2 = factors(out, hidden, min(rank, out), **kind)
        weights = u1, v1, normal(hidden, **kind), u2, v2
        return FfnOperands(normal(*lead, cols, **kind), weights, u2.double() @ v2.double(), *last)
    weights: tuple[Tensor, ...] = ()
    dense = torch.zeros(out, cols, dtype=torch.float64, device=device)
    if stem != "block_sparse_linear":
        u, v = factors(out, cols, min(rank, out, cols), **kind)
        weights += u, v
        dense += u.double() @ v.double()
    if stem != "low_rank_linear":
        sparse = sparse_weight(grid, block, **kind)
        weights += bsr_by_hand(sparse, grid, block)
        dense += sparse.double()
    return Operands(normal(*lead, cols, **kind), weights, dense, *last)


def bsr_by_hand(
    weight: Tensor, grid: Tensor, block: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """crow_indices, col_indices and row-major values of the blocks of `weight` where `grid` is."""
    (rows, cols), crow, col, values = block, [0], [], []
    for i, row in enumerate(grid.tolist()):
        for j, kept in enumerate(row):
            if kept:
                col.append(j)
                values.append(weight[i * rows : (i + 1) * rows, j * cols : (j + 1) * cols])
        crow.append(len(col))
    stacked = torch.stack(values) if values else weight.new_zeros(0, rows, cols)
    index = {"dtype": torch.int32, "device": weight.device}
    return torch.tensor(crow, **index), torch.tensor(col, **index), stacked


def call(stem: str, operands: Operands) -> Tensor:
    """The public function of the op `stem`."""
    op = getattr(lada_ops, stem)
    given = operands.x, *operands.weights, operands.bias
    norm = {} if operands.norm is None else {"norm": operands.norm}
    return op(*given, activation=operands.activation, residual=operands.residual, **norm)


def call_ref(stem: str, operands: Operands) -> Tensor:
    """The reference of the op `stem`."""
    ref = getattr(reference, f"{stem}_ref")
    given = operands.x, *operands.weights, operands.bias
    return ref(*given, operands.activation, operands.residual, operands.norm)


def torch_op(stem: str) -> Any:
    """``torch.ops.lada.<stem>``, called with `Operands.args`."""
    return getattr(torch.ops.lada, stem).default


def assert_matches(got: Tensor, want: Tensor) -> None:
    """`got` has the shape and the values of the fp64 `want`, to the tolerance of its dtype."""
    bound = TOLERANCE[got.dtype]
    torch.testing.assert_close(got.double(), want.double(), rtol=bound, atol=bound)


def assert_matches_scaled(got: Tensor, want: Tensor, roundings: int = 4) -> None:
    """`got` differs from the fp64 `want` by a few roundings of the largest value of `want`."""
    largest = float(want.abs().max()) if want.numel() else 0.0
    bound = roundings * TOLERANCE[got.dtype] * largest
    torch.testing.assert_close(got.double(), want.double(), rtol=0, atol=bound)
