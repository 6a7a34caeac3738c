"""Comparison of whole models on the same inputs."""

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
# The worst token of a model in int8 has a relative error of about .1: a cosine to fp32 of .995.
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

    At all unmasked positions each model must give the outputs of its own fp32 copy with dense
    linears: compression may change a model's outputs, the way they are computed may not.

    compressed: name -> model; it may have other changes, as long as `lada_ops.decompress`
        finds its compressed linears.
    batches: label (such as ``"8x128"``) -> inputs, on the models' device.
    references: name of each optimized model -> the model before `lada_ops.optimize`, which gives
        the expected outputs.
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
    norms = {name: _norm([expected[name, label] for label in batches]) for name in models}
    return {
        label: compare(
            [
                Candidate(
                    name,
                    partial(model, **inputs),
                    expected[name, label],
                    tolerance or _tolerance(model),
                    partial(read_output, attention_mask=inputs.get("attention_mask")),
                    norms[name],
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
    """Tensor of a model's output to check: last_hidden_state, else logits, else the first tensor.

    In an output (batch, length, ...) only the positions where ``attention_mask (batch, length)`` is
    not 0: values at padding are arbitrary.

    Raises TypeError on an output without tensors.
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


def _norm(outputs: Iterable[Tensor]) -> float:
    """Root mean square of the norms of all rows."""
    norms = torch.cat([row_norms(output.double()).flatten() for output in outputs])
    return float(norms.square().mean().sqrt())


def _packed_dtypes(model: nn.Module) -> set[torch.dtype]:
    """Compute dtypes of an optimized model's linears; empty where it was not optimized."""
    return {m.packed.dtype for m in model.modules() if isinstance(m, PackedLinear)}


def _tolerance(model: nn.Module) -> float | None:
    """Tolerance of an optimized model: the largest of its linears' and its parameters' dtypes."""
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
    """Comparisons as by `compare_models`, without the models of `may_miss` whose output is wrong.

    Such a model (in int8, for example) is left out of all comparisons, and listed in their
    `missing` with the reason.
    """
    kept, missing = dict(models), {}
    while True:
        own = {name: reference for name, reference in references.items() if name in kept}
        try:
            comparisons = compare_models(dense, kept, batches, references=own, **options)
        except WrongOutput as error:
            if error.candidate not in may_miss:
                raise
            missing[error.candidate] = error.reason
            del kept[error.candidate]
        else:
            return {k: replace(found, missing=missing) for k, found in comparisons.items()}
