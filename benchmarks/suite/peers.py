"""Peers of our sparse kernels: torch's block-sparse product, tuned by its own tuner, and 2:4."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest.mock import patch

import torch.nn.functional as F
from torch import Tensor

from lada_ops.tune import Case
from lada_ops.tune.operands import Operands, finished

from .workload import Implementation

TUNER_SECONDS = 12.0
WARM_UP, REPEAT = 5, 20  # milliseconds; torch's 500 and 100 would take minutes per shape

_tuned: dict[tuple[Any, ...], dict[str, Any] | RuntimeError] = {}


def tuning_key(case: Case) -> tuple[Any, ...]:
    """Key of the parameters that torch's tuner finds; like torch's own, it ignores density."""
    return case.tokens, case.k, case.n, case.parts.rows, case.parts.cols


def is_tuned(case: Case) -> bool:
    return tuning_key(case) in _tuned


def torch_bsr(operands: Operands) -> Implementation:
    """`bsr_dense_addmm`, the product behind ``F.linear(x, bsr)``."""
    bsr, key = operands.bsr, tuning_key(operands.case)
    assert bsr is not None
    # expanded ahead of the timed call, to the peer's advantage
    added = operands.biases["bias"][:, None].expand(-1, operands.case.tokens).contiguous()
    tensors = {"x": operands.x, "bsr": bsr.to_torch(), "added": added}
    if key not in _tuned:
        try:
            _tuned[key] = tune(**tensors, density=operands.case.parts.percent / 100)
        except RuntimeError as error:
            _tuned[key] = error
    tuned = _tuned[key]
    if isinstance(tuned, RuntimeError):
        raise tuned
    call = partial(bsr_linear, operands.activation, tuned["meta"])
    return Implementation(call, tensors | operands.epilogue, bsr.values.numel(), note=tuned)


def bsr_linear(
    activation: str,
    meta: dict[str, int] | None,
    x: Tensor,
    bsr: Tensor,
    added: Tensor,
    **epilogue: Tensor,
) -> Tensor:
    from torch.sparse._triton_ops import bsr_dense_addmm

    z = bsr_dense_addmm(added, bsr, x.t(), meta=meta).t()
    return finished(z, activation, **epilogue)


def tune(x: Tensor, bsr: Tensor, added: Tensor, density: float) -> dict[str, Any]:
    """Parameters that torch's tuner finds in `TUNER_SECONDS`, and the number it tried."""
    import triton
    from torch.sparse._triton_ops_meta import tune_bsr_dense_addmm

    start, tried, failure = time.monotonic(), 0, ""
    do_bench = triton.testing.do_bench

    def hurried(function: Callable[[], Any], **_: Any) -> Any:
        nonlocal tried, failure
        if time.monotonic() - start > TUNER_SECONDS:
            # the tuner counts this as one more failed configuration
            raise TimeoutError("the tuner's time is up")
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


def two_to_four(operands: Operands, weight: Tensor, backend: str) -> Implementation:
    """Product by the dense `weight` pruned 2:4, in the format of `backend`."""
    from torch.sparse import semi_structured

    kind = getattr(semi_structured, f"SparseSemiStructuredTensor{backend}")
    pruned = prune_2to4(weight)
    tensors = {"x": operands.x, "weight": kind.from_dense(pruned), **operands.biases}
    return Implementation(
        partial(semi_structured_linear, operands.activation),
        tensors | operands.epilogue,
        weight.numel() // 2,
        expected=operands.expected(pruned),
    )


def prune_2to4(weight: Tensor) -> Tensor:
    """`weight` with the two smallest of every four along a row set to 0."""
    quads = weight.unflatten(-1, (-1, 4))
    smallest = quads.abs().topk(2, dim=-1, largest=False).indices
    return quads.scatter(-1, smallest, 0.0).flatten(-2)


def semi_structured_linear(
    activation: str, x: Tensor, weight: Tensor, bias: Tensor, **epilogue: Tensor
) -> Tensor:
    return finished(F.linear(x, weight, bias), activation, **epilogue)
