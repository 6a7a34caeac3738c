"""Problems: a case with operands, its expected output, and candidates to time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..latency import Candidate, Rotation, copies_for
from ..ops.add_norm import add_norm
from ..ops.reference import Norm
from .case import Case
from .operands import EPS, Operands, Tensors, launcher

if TYPE_CHECKING:
    from lada_kernels.variants import Variant

CHECKED_ROWS = 4096


@dataclass(frozen=True, eq=False)
class Problem:
    """Operands of a case, and the rows of its output that are checked.

    dense: operands of the dense product, by name. rows: indices (checked,), evenly spaced from the
    first row to the last. expected: output (checked, n) in fp64.
    """

    operands: Operands
    dense: Tensors
    rows: Tensor
    expected: Tensor

    @property
    def case(self) -> Case:
        return self.operands.case

    @classmethod
    def draw(cls, case: Case, device: torch.device) -> Problem:
        operands = Operands.draw(case, device)
        count, like = min(case.tokens, CHECKED_ROWS), {"device": device, "dtype": torch.float32}
        rows = torch.linspace(0, case.tokens - 1, count, **like).round().long()
        weights = operands.dense_weights()
        dense = {"x": operands.x, **operands.epilogue}
        pairs = zip(weights, operands.biases.values(), strict=True)
        for suffix, (weight, bias) in zip(("1", "2"), pairs, strict=False):
            dense |= {f"weight{suffix}": weight.to(operands.x.dtype), f"bias{suffix}": bias}
        return cls(operands, dense, rows, operands.expected(*weights, rows=rows))

    def candidate(self, variant: Variant, l2_bytes: int) -> Candidate:
        """`variant` over as many copies of its operands as overflow an L2 of this size."""
        run, tensors = launcher(self.case, variant), self.operands.launcher_arguments
        if variant.name == "dense":
            run, tensors = partial(_dense, self.operands.activation), self.dense
        bytes_per_call = sum(t.numel() * t.element_size() for t in tensors.values())
        copies = copies_for(bytes_per_call + self.output_bytes, l2_bytes)
        sets = [tensors]
        sets += [{name: t.clone() for name, t in tensors.items()} for _ in range(copies - 1)]
        calls: list[Callable[[], Tensor]] = [partial(run, **copy) for copy in sets]
        return Candidate(variant.name, Rotation(calls), self.expected, read=lambda y: y[self.rows])

    @property
    def output_bytes(self) -> int:
        return self.case.tokens * self.case.n * self.operands.x.element_size()


def _dense(
    activation: str,
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor | None = None,
    bias2: Tensor | None = None,
    residual: Tensor | None = None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
) -> Tensor:
    """Dense linear or feed-forward by cuBLAS, each product followed by the `add_norm` kernel."""
    z = F.linear(x, weight1, bias1)
    if weight2 is not None:
        z = F.linear(add_norm(z, activation="gelu"), weight2, bias2)
    norm = None if norm_weight is None or norm_bias is None else Norm(norm_weight, norm_bias, EPS)
    return add_norm(z, activation=activation, residual=residual, norm=norm)
