"""Whole models, side by side on the same inputs."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..compression.decompress import decompress
from ..engine.optimize import restore
from ..host.progress import progress_bar
from ..modules.packed_linear import PackedLinear
from .candidate import TOLERANCES, Candidate, WrongOutput, row_norms
from .compare import compare
from .result import Comparison

BASELINE = "dense"
# The worst token of a model in int8 is off by about a tenth: its cosine to fp32 is .995.
INT8_TOLERANCE = 0.25


def compare_models(
    dense: nn.Module,
    compressed: Mapping[str, nn.Module],
    batches: Mapping[str, Mapping[str, Any]],
    *,
    references: Mapping[str, nn.Module] | None = None,
    rounds: int = 7,
    warmup: int = 1,
    threads: int | None = None,
    tolerance: float | None = None,
    quiet: bool = False,
) -> dict[str, Comparison]:
    """Time `compressed` models against `dense`, the baseline, one comparison per batch.

    Each model must give, at all positions its attention_mask keeps, what its own fp32 copy with
    every linear dense again gives: compression may change what a model says, the way it is
    run may not.

    compressed: name -> model; any may be changed already by other means, as long as
        `lada_ops.decompress` finds its compressed linears.
    batches: label (such as ``"8x128"``) -> the inputs, on the models' device.
    references: name -> the model as it was before `lada_ops.optimize`, which must give what the
        optimized one does; for each that was optimized.
    rounds, warmup, threads, quiet: see `compare`. tolerance: see `Candidate`.

    Raises WrongOutput where an output is wrong; ValueError on a model in training mode, one named
    "dense", an optimized one without its reference, or no batches; TypeError on an output without
    tensors.
    """
    if BASELINE in compressed:
        raise ValueError(f"compare_models: a compressed model is named {BASELINE!r}; rename it")
    if not batches:
        raise ValueError("compare_models: batches is empty; expected label -> inputs")
    models = {BASELINE: dense, **compressed}
    for name, model in models.items():
        if model.training:
            raise ValueError(f"compare_models: {name!r} is in training mode; call .eval() first")
        if _packed_dtypes(model) and name not in (references or {}):
            raise ValueError(
                f"compare_models: {name!r} was optimized; expected the model before that in "
                "references"
            )
    expected = _references(models | dict(references or {}), batches, quiet)
    sizes = {name: _size([expected[name, label] for label in batches]) for name in models}
    return {
        label: compare(
            [
                Candidate(
                    name,
                    partial(model, **inputs),
                    expected[name, label],
                    tolerance or _tolerance(model),
                    partial(read_output, attention_mask=inputs.get("attention_mask")),
                    sizes[name],
                )
                for name, model in models.items()
            ],
            baseline=BASELINE,
            rounds=rounds,
            warmup=warmup,
            threads=threads,
            label=label,
            quiet=quiet,
        )
        for label, inputs in batches.items()
    }


def read_output(output: Any, attention_mask: Tensor | None = None) -> Tensor:
    """What a model is held to: last_hidden_state, else logits, else its first tensor.

    Of an output (batch, length, ...) only positions where ``attention_mask (batch, length)`` is not
    0: what a model computes for padding is nobody's business.
    """
    if isinstance(output, Mapping):
        named = [output[key] for key in ("last_hidden_state", "logits") if key in output]
        output = [*named, *output.values()]
    if isinstance(output, (tuple, list)):
        output = next((item for item in output if isinstance(item, Tensor)), output)
    if not isinstance(output, Tensor):
        raise TypeError(
            f"compare_models: a model returned {type(output).__name__}; "
            "expected a tensor, or a tuple or mapping that holds one"
        )
    if attention_mask is not None and output.shape[:2] == attention_mask.shape:
        return output[attention_mask != 0]
    return output


def _size(outputs: Iterable[Tensor]) -> float:
    """The root mean square of the norms of their rows."""
    norms = torch.cat([row_norms(output.double()).flatten() for output in outputs])
    return float(norms.square().mean().sqrt())


def _packed_dtypes(model: nn.Module) -> set[torch.dtype]:
    """What the linears of an optimized model compute in; none where it was not optimized."""
    return {m.packed.dtype for m in model.modules() if isinstance(m, PackedLinear)}


def _tolerance(model: nn.Module) -> float | None:
    """The largest of what an optimized model computes in: its linears, and what is around them."""
    packed = _packed_dtypes(model)
    if not packed:
        return None
    tolerances = TOLERANCES | {torch.int8: INT8_TOLERANCE}
    return max(tolerances[dtype] for dtype in packed | {p.dtype for p in model.parameters()})


@torch.no_grad()
def _references(
    models: Mapping[str, nn.Module], batches: Mapping[str, Mapping[str, Any]], quiet: bool
) -> dict[tuple[str, str], Tensor]:
    expected = {}
    with progress_bar(quiet) as progress:
        for name, model in progress.track(models.items(), description="references"):
            reference = copy.deepcopy(model)
            restore(reference)
            decompress(reference)
            reference.float()
            for label, inputs in batches.items():
                output = reference(**{key: _to_fp32(value) for key, value in inputs.items()})
                expected[name, label] = read_output(output, inputs.get("attention_mask"))
    return expected


def _to_fp32(value: Any) -> Any:
    floating = isinstance(value, Tensor) and value.is_floating_point()
    return value.float() if floating else value


def compare_served(
    dense: nn.Module,
    models: Mapping[str, nn.Module],
    batches: Mapping[str, Mapping[str, Any]],
    references: Mapping[str, nn.Module],
    may_miss: Collection[str],
    **options: Any,
) -> dict[str, Comparison]:
    """`compare_models`, that goes on without models of `may_miss` whose output is wrong.

    Such a model, as one in int8 may be, is missing from all comparisons: no time of it counts,
    those of the others do.
    """
    left, missing = dict(models), {}
    while True:
        own = {name: of for name, of in references.items() if name in left}
        try:
            found = compare_models(dense, left, batches, references=own, **options)
        except WrongOutput as error:
            if error.candidate not in may_miss:
                raise
            missing[error.candidate] = error.reason
            del left[error.candidate]
        else:
            return {label: replace(one, missing=missing) for label, one in found.items()}
