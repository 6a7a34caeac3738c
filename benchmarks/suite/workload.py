"""Workloads: a case, its output in fp64, and the implementations that compute it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor
from torch.sparse import SparseSemiStructuredTensor

from lada_ops.machine_code.roofline import Work
from lada_ops.tune.operands import Tensors

from .cases import SuiteCase
from .roofline import stored_bytes

# operands that are no part of the work: the dense weight that a dispatch may use instead of the
# compressed one, and the bias expanded ahead of the call
SPARE = ("dense", "added")


@dataclass(frozen=True, eq=False)
class Implementation:
    """An implementation of a case with its operands, called as ``call(**tensors)``.

    macs: weight elements multiplied per token. expected: its own expected output, where its weights
    are others (2:4). read: picks the checked tensor out of the call's result. note: entries for the
    result row, such as the parameters that a tuner chose.
    """

    call: Callable[..., Any]
    tensors: Tensors
    macs: int
    expected: Tensor | None = None
    read: Callable[[Any], Tensor] = lambda output: output
    note: Mapping[str, Any] = field(default_factory=dict)

    def copies(self, count: int) -> list[Callable[[], Any]]:
        """Calls bound to `count` copies of the operands, the original first."""
        sets = [self.tensors]
        sets += [{k: copied(t) for k, t in self.tensors.items()} for _ in range(count - 1)]
        return [partial(self.call, **tensors) for tensors in sets]

    def work(self, tokens: int, output_bytes: int) -> Work:
        read = stored_bytes(t for name, t in self.tensors.items() if name not in SPARE)
        return Work(2 * self.macs * tokens, read + output_bytes)


Implementations = dict[str, Callable[[], Implementation]]


@dataclass(frozen=True, eq=False)
class Workload:
    """A case with its expected output in fp64 and its implementations by name.

    implementations: functions that prepare one each; an error becomes the reason in the row.
    output_bytes: bytes that each implementation writes.
    """

    case: SuiteCase
    expected: Tensor
    implementations: Mapping[str, Callable[[], Implementation]]
    output_bytes: int


def copied(t: Tensor) -> Tensor:
    """Copy of `t` that shares no memory with it."""
    if not isinstance(t, SparseSemiStructuredTensor):
        return t.clone()
    # these have no clone before torch 2.12
    names, context = t.__tensor_flatten__()
    parts = {name: getattr(t, name).clone() for name in names}
    return type(t).__tensor_unflatten__(parts, context, t.shape, t.stride())
