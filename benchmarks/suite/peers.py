"""Others' sparse products: torch's block-sparse one, tuned by its own tuner, and 2:4."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest.mock import patch

import torch.nn.functional as F
from torch import Tensor

from .cases import Case
from .problem import Entry, Operands, finished

TUNER_SECONDS = 12.0
WARM_UP, REPEAT = 5, 20  # milliseconds; with torch's own, 500 and 100, a shape takes minutes

_tuned: dict[tuple[Any, ...], dict[str, Any] | RuntimeError] = {}


def tuning_key(case: Case) -> tuple[Any, ...]:
    """What torch's parameters are found for once; it, too, looks them up across densities."""
    return case.tokens, case.in_features, case.out_features, case.block


def is_tuned(case: Case) -> bool:
    return tuning_key(case) in _tuned


def torch_bsr(operands: Operands) -> Entry:
    """`bsr_dense_addmm`, the product behind ``F.linear(x, bsr)``."""
    bsr, key = operands.bsr, tuning_key(operands.case)
    assert bsr is not None
    # it would write the bias out at each call; beforehand is the best that can be done for it
    added = operands.bias[:, None].expand(-1, operands.case.tokens).contiguous()
    tensors = {"x": operands.x, "bsr": bsr.to_torch(), "added": added}
    if key not in _tuned:
        try:
            _tuned[key] = tune(**tensors, density=operands.case.density)
        except RuntimeError as error:
            _tuned[key] = error
    found = _tuned[key]
    if isinstance(found, RuntimeError):
        raise found
    call = partial(bsr_linear, operands.activation, found["meta"])
    return Entry(call, tensors | operands.finish, bsr.values.numel(), note=found)


def bsr_linear(
    activation: str,
    meta: dict[str, int] | None,
    x: Tensor,
    bsr: Tensor,
    added: Tensor,
    **finish: Tensor,
) -> Tensor:
    from torch.sparse._triton_ops import bsr_dense_addmm

    z = bsr_dense_addmm(added, bsr, x.t(), meta=meta).t()
    return finished(z, activation, **finish)


def tune(x: Tensor, bsr: Tensor, added: Tensor, density: float) -> dict[str, Any]:
    """The parameters that torch's tuner finds in `TUNER_SECONDS`, and how many it tried."""
    import triton
    from torch.sparse._triton_ops_meta import tune_bsr_dense_addmm

    start, tried, failure = time.monotonic(), 0, ""
    do_bench = triton.testing.do_bench

    def hurried(function: Callable[[], Any], **_: Any) -> Any:
        nonlocal tried, failure
        if time.monotonic() - start > TUNER_SECONDS:
            raise TimeoutError("the tuner's time is up")  # it takes this as one more that failed
        tried += 1
        try:
            return do_bench(function, warmup=WARM_UP, rep=REPEAT)
        except Exception as error:
            failure = f"{type(error).__name__}: {error}"
            raise

    with patch.object(triton.testing, "do_bench", hurried):
        meta = tune_bsr_dense_addmm(added, bsr, x.t())
    if not meta:
        raise RuntimeError(f"torch's tuner: none of {tried} configurations works: {failure}")
    return {
        "tuner_configurations": tried,
        "tuner_seconds": round(time.monotonic() - start, 1),
        "tuned_at_density": density,
        "meta": meta,
    }


def two_to_four(operands: Operands, weight: Tensor, backend: str) -> Entry:
    """The dense `weight` with the smaller half of each 4 set to 0, in the format of `backend`."""
    from torch.sparse import semi_structured

    kind = getattr(semi_structured, f"SparseSemiStructuredTensor{backend}")
    pruned = prune_2to4(weight)
    tensors = {"x": operands.x, "weight": kind.from_dense(pruned), "bias": operands.bias}
    return Entry(
        partial(semi_structured_linear, operands.activation),
        {**tensors, **operands.finish},
        weight.numel() // 2,
        expected=operands.expected(pruned),
    )


def prune_2to4(weight: Tensor) -> Tensor:
    """`weight` with the two smallest of each four along a row set to 0."""
    quads = weight.unflatten(-1, (-1, 4))
    smallest = quads.abs().topk(2, dim=-1, largest=False).indices
    return quads.scatter(-1, smallest, 0.0).flatten(-2)


def semi_structured_linear(
    activation: str, x: Tensor, weight: Tensor, bias: Tensor, **finish: Tensor
) -> Tensor:
    return finished(F.linear(x, weight, bias), activation, **finish)
