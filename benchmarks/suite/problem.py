"""A case made concrete: operands, the fp64 answer, and the ways to get it, ours and others'."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.sparse import SparseSemiStructuredTensor

from lada_ops import Bsr
from lada_ops.approximation.blocks import prune_blocks
from lada_ops.machine_code.roofline import Work

from .cases import Case
from .roofline import stored_bytes

EPS = 1e-12  # of BERT's LayerNorm
# operands that are no part of a way's work: a dense weight that a dispatch may use instead of the
# compressed one, and a bias that was written out beforehand
SPARE = ("dense", "added")

Tensors = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Entry:
    """One way, ready to be called: ``call(**tensors)``.

    macs: weight elements that each token is multiplied by. expected: where the way has weights of
    its own (2:4), the answer that these give. read: picks what is checked out of what call returns.
    note: how it was prepared, such as the parameters a tuner found.
    """

    call: Callable[..., Any]
    tensors: Tensors
    macs: int
    expected: Tensor | None = None
    read: Callable[[Any], Tensor] = lambda output: output
    note: Mapping[str, Any] = field(default_factory=dict)

    def copies(self, count: int) -> list[Callable[[], Any]]:
        """The call bound to `count` copies of its operands, the first of them its own."""
        sets = [self.tensors]
        sets += [{k: copied(t) for k, t in self.tensors.items()} for _ in range(count - 1)]
        return [partial(self.call, **tensors) for tensors in sets]

    def work(self, tokens: int, output_bytes: int) -> Work:
        read = stored_bytes(t for name, t in self.tensors.items() if name not in SPARE)
        return Work(2 * self.macs * tokens, read + output_bytes)


@dataclass(frozen=True, eq=False)
class Problem:
    """ways: name -> what prepares it, which may raise: then there is a reason instead of a time.

    expected: the answer in fp64. output_bytes: of what each way writes.
    """

    case: Case
    expected: Tensor
    ways: Mapping[str, Callable[[], Entry]]
    output_bytes: int


@dataclass(frozen=True, eq=False)
class Operands:
    """Random operands of a case, such that the output keeps about the variance of x.

    factors: u, v; with u2, v2 for a feed-forward. finish: residual and LayerNorm, where they are.
    """

    case: Case
    x: Tensor
    bias: Tensor
    factors: Tensors
    bsr: Bsr | None
    finish: Tensors

    @classmethod
    def draw(cls, case: Case, device: torch.device, dtype: torch.dtype) -> Operands:
        def normal(*shape: int, scale: float = 1.0) -> Tensor:
            return (torch.randn(*shape, device=device) * scale).to(dtype)

        k, n, r = case.in_features, case.out_features, case.rank
        inner = case.hidden or n
        factors = {}
        if r:
            factors = {
                "u": normal(inner, r, scale=r**-0.5),
                "v": normal(case.groups * r, k, scale=k**-0.5),
            }
        if case.hidden:
            factors["u2"] = normal(n, r, scale=r**-0.5)
            factors["v2"] = normal(r, inner, scale=inner**-0.5)
            factors["bias2"] = normal(n)
        bsr = None
        if case.density:
            weight = normal(n, k, scale=(case.density * k) ** -0.5)
            bsr = prune_blocks(weight, case.block, case.density)
        finish = {}
        if case.epilogue == "norm":
            finish = {
                "residual": normal(case.tokens, n),
                "norm_weight": 1 + normal(n, scale=0.1),
                "norm_bias": normal(n),
            }
        return cls(case, normal(case.tokens, k), normal(inner), factors, bsr, finish)

    @property
    def activation(self) -> str:
        return "gelu" if self.case.epilogue == "gelu" or self.case.hidden else "none"

    def weight(self, second: bool = False) -> Tensor:
        """The dense weight (out, in), multiplied out and summed in fp64; of a feed-forward, one."""
        names = ("u2", "v2") if second else ("u", "v")
        dense = torch.zeros((), dtype=torch.float64, device=self.x.device)
        if self.factors:
            u, v = (self.factors[name].double() for name in names)
            # each run of rows of u has a run of rows of v
            runs = u.unflatten(0, (self.case.groups, -1)), v.unflatten(0, (self.case.groups, -1))
            dense = torch.bmm(*runs).flatten(0, 1)
        return dense if self.bsr is None else dense + self.bsr.to_dense().double()

    def expected(self, *weights: Tensor) -> Tensor:
        """The answer in fp64 for these dense `weights`, by default the case's own."""
        finish = {name: t.double() for name, t in self.finish.items()}
        x, bias = self.x.double(), self.bias.double()
        if not self.case.hidden:
            (weight,) = weights or (self.weight(),)
            return finished(F.linear(x, weight.double(), bias), self.activation, **finish)
        up, down = weights or (self.weight(), self.weight(second=True))
        hidden = F.gelu(F.linear(x, up.double(), bias))
        bias2 = self.factors["bias2"].double()
        return finished(F.linear(hidden, down.double(), bias2), "none", **finish)


def copied(t: Tensor) -> Tensor:
    """`t` in memory of its own."""
    if not isinstance(t, SparseSemiStructuredTensor):
        return t.clone()
    # which cannot clone itself before torch 2.12
    names, context = t.__tensor_flatten__()
    parts = {name: getattr(t, name).clone() for name in names}
    return type(t).__tensor_unflatten__(parts, context, t.shape, t.stride())


def finished(
    z: Tensor,
    activation: str,
    residual: Tensor | None = None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
) -> Tensor:
    """``LN(activation(z) + residual)``, each by torch."""
    y = F.gelu(z) if activation == "gelu" else z
    if residual is not None:
        y = y + residual
    if norm_weight is not None:
        y = F.layer_norm(y, norm_weight.shape, norm_weight, norm_bias, EPS)
    return y
