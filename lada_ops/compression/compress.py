"""Compress a model in place by a plan, and bring dense linears back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..engine.optimize import undo
from ..engine.record import optimized_part
from ..formats.bsr import Bsr
from ..formats.checks import check_finite
from ..formats.counts import Counts
from ..formats.low_rank import LowRank
from ..formats.sparse_low_rank import Format
from ..host.progress import progress_bar
from ..modules.block_sparse_linear import BlockSparseLinear
from ..modules.checks import check_module
from ..modules.compressed_linear import CompressedLinear
from ..modules.low_rank_linear import LowRankLinear
from ..modules.sparse_low_rank_linear import SparseLowRankLinear
from .calibration import NO_BATCH, Batches, Statistics, statistics_of
from .fit import ErrorNorm, fit
from .plan import CompressionPlan, LayerPlan
from .pretrained import compression_of, forget_compression, record_compression
from .report import CompressionReport, LayerReport
from .sequential import Drift, fit_in_sequence


def compress(
    model: nn.Module,
    plan: CompressionPlan,
    calibration: Batches | Statistics | None = None,
    *,
    batches: Batches | None = None,
    quiet: bool = False,
) -> CompressionReport:
    """Replace the planned linears by compressed modules, in place, all or nothing.

    calibration: batches, each a dict of the model's inputs as a tokenizer returns it, or what
    `layer_statistics` made of them; some 10,000 tokens of the model's own kind of text do. With it
    the compressed weights are fitted to what the layers see, and to what their errors do to the
    model's outputs, and biases make up for what the weights lose in the mean, which keeps far more
    accuracy than fitting the weights alone.
    batches: those that calibration was made of, or a part of them. With them the linears are
    compressed in the order in which they run, each fitted to what the compressed ones before it
    make of the batches, which keeps more accuracy still and takes minutes (see `fit_in_sequence`).
    Plan and report are recorded in ``model.config``, so that `save_pretrained` keeps them; build
    another model from a copy of the config, or it shares them.

    Raises ValueError or TypeError, the model unchanged, where the plan is for another model, a
    weight or the calibration holds NaN, or calibration is missing or superfluous for the plan.
    """
    check_module("compress", model, values=True)
    compression_of(model)  # raises if another method quantized the model
    linears = _planned_linears(model, plan)
    if batches is not None:
        batches = list(batches)
        if not batches:
            raise ValueError(f"compress: {NO_BATCH}")
        calibration = batches if calibration is None else calibration
    if calibration is None and plan.objective not in ("auto", "weights"):
        raise ValueError(
            f"compress: calibration None for a plan with objective {plan.objective!r}; expected "
            "batches of the model's inputs, or a plan with objective 'weights' or 'auto'"
        )
    if calibration is not None and plan.objective == "weights":
        raise ValueError(
            "compress: calibration given for a plan with objective 'weights'; expected None, or a "
            "plan with another objective"
        )
    statistics = statistics_of(model, linears, calibration, quiet)
    objective = plan.objective
    if objective == "auto":
        objective = "weights" if calibration is None else "outputs"

    bytes_dense = model_bytes(model)
    modules: dict[str, CompressedLinear] = {}
    layers: dict[str, LayerReport] = {}
    with progress_bar(quiet) as progress:
        task = progress.add_task("compression", total=len(linears))

        def replacement(name: str, drift: Drift | None = None) -> CompressedLinear:
            linear, layer, seen = linears[name], plan.layers[name], statistics.get(name)
            if seen is None:
                weight = fit(linear.weight, layer)
            else:
                drift = drift or Drift.none(linear, seen)
                norm = ErrorNorm.of(objective, drift.inputs, seen.outputs)
                weight = fit(drift.target(linear.weight), layer, norm, plan.selection)
                weight = weight.to(linear.weight.dtype)
            module = modules[name] = to_module(weight, linear)
            if drift is not None:
                _shift_bias(module, linear, drift)
            layers[name] = _layer_report(layer, objective, linear, weight, drift)
            progress.advance(task)
            return module

        if batches is not None:
            fit_in_sequence(model, linears, batches, replacement)
        for name, linear in linears.items():
            module = modules.get(name) or replacement(name)
            module.train(linear.training)  # not that of the sequence
    with replaced_modules(model, modules):
        in_order = {name: layers[name] for name in linears}
        report = CompressionReport(in_order, bytes_dense, model_bytes(model))
        record_compression(model, plan, report)
    return report


def restore(model: nn.Module) -> list[str]:
    """Undo `optimize`; on a model that was not optimized, `compress`. In place.

    The first gives the model as it was, its weights rounded where it was packed in less than fp32.
    The second puts an `nn.Linear` in the place of every compressed module, its weight the
    compressed one multiplied out: what compression took away stays away.
    Returns the names of the modules changed.

    Raises ValueError, the model unchanged, on a module with an activation: no linear has one; and
    on a part of a model that was optimized as a whole.
    """
    check_module("restore", model)
    undone = undo(model)
    if undone is not None:
        return undone
    part = optimized_part(model)
    if part is not None:
        raise ValueError(
            f"restore: {part or 'the model'} was optimized with a larger model; expected that one"
        )
    linears: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if not isinstance(module, CompressedLinear):
            continue
        if module.activation != "none":
            raise ValueError(
                f"restore: {name} has activation {module.activation!r}; expected 'none', since an "
                "nn.Linear has none"
            )
        linears[name] = module.to_linear()
    with replaced_modules(model, linears):
        forget_compression(model)
    return list(linears)


def to_module(weight: Format, like: nn.Linear | CompressedLinear) -> CompressedLinear:
    """The module for `weight` that takes the place of `like`: its bias, mode and grad flags."""
    activation = getattr(like, "activation", "none")
    if isinstance(weight, LowRank):
        module = LowRankLinear.from_format(weight, like.bias, activation)
    elif isinstance(weight, Bsr):
        module = BlockSparseLinear.from_format(weight, like.bias, activation)
    else:
        module = SparseLowRankLinear.from_format(weight, like.bias, activation)
    trained = any(p.requires_grad for name, p in like.named_parameters() if name != "bias")
    module.train(like.training).requires_grad_(trained)
    if module.bias is not None and like.bias is not None:
        module.bias.requires_grad_(like.bias.requires_grad)
    if isinstance(like, CompressedLinear):
        module.keep_dense = like.keep_dense
    return module


@torch.no_grad()
def _shift_bias(module: CompressedLinear, linear: nn.Linear, drift: Drift) -> None:
    if module.bias is not None:
        weight = module.format.to(torch.float64).to_dense()
        module.bias.copy_(drift.shifted(linear.bias, linear.weight, weight))


@contextmanager
def replaced_modules(model: nn.Module, modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """Set every named submodule; if that or the body fails, all are put back."""
    new = {id(model.get_submodule(name)): module for name, module in modules.items()}
    # a module may go by several names, and is replaced under each
    everywhere = model.named_modules(remove_duplicate=False)
    before = {name: module for name, module in everywhere if id(module) in new}
    try:
        for name, module in before.items():
            model.set_submodule(name, new[id(module)])
        yield
    except BaseException:
        for name, module in before.items():
            model.set_submodule(name, module)
        raise


def _planned_linears(model: nn.Module, plan: CompressionPlan) -> dict[str, nn.Linear]:
    if not isinstance(plan, CompressionPlan):
        raise TypeError(
            f"compress: plan is {type(plan).__name__}; expected CompressionPlan, as from "
            "lada_ops.plan(model, ...)"
        )
    if not plan.layers:
        raise ValueError("compress: plan has no layers; expected at least one")
    modules = dict(model.named_modules())
    linears = {}
    for name, layer in plan.layers.items():
        linear = modules.get(name)
        if type(linear) is not nn.Linear:
            got = "no module" if linear is None else f"a {type(linear).__name__}"
            raise ValueError(
                f"compress: the plan is for another model: {type(model).__name__} has {got} "
                f"named {name!r}; expected an nn.Linear"
            )
        got = linear.in_features, linear.out_features
        if got != (layer.in_features, layer.out_features):
            raise ValueError(
                f"compress: the plan is for another model: {name} has (in, out) {got}; "
                f"the plan expects {(layer.in_features, layer.out_features)}"
            )
        check_finite(f"compress: {name}", linear.weight)
        linears[name] = linear
    return linears


@torch.no_grad()
def _layer_report(
    plan: LayerPlan,
    objective: str,
    linear: nn.Linear,
    weight: Format,
    drift: Drift | None,
) -> LayerReport:
    dense, now = linear.weight.double(), weight.to_dense().double()
    bias = Counts() if linear.bias is None else Counts.of(linear.bias, flops_per_value=1)
    return LayerReport(
        plan,
        objective,
        _relative((dense - now).square().sum(), dense.square().sum()),
        None if drift is None else drift.error(linear, now),
        Counts.of(linear.weight) + bias,
        weight.counts() + bias,
    )


def _relative(squared_error: Tensor, squared_norm: Tensor) -> float:
    return float((squared_error.clamp(min=0) / squared_norm.clamp(min=1e-300)).sqrt())


def model_bytes(model: nn.Module) -> int:
    """The bytes of all tensors of a model, each once."""
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return sum(t.numel() * t.element_size() for t in tensors.values())
