"""`compress`: statistics, plan, fit and replacement of a model's linears, in one call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..approximation.blocks import Selection
from ..formats.checks import check_finite
from ..formats.counts import Counts
from ..formats.sparse_low_rank import Format
from ..host.progress import progress_bar
from ..modules.checks import check_module
from ..modules.compressed_linear import CompressedLinear
from . import budget
from .batches import Batches, listed_batches
from .calibration import Statistics, statistics_of
from .fit import ErrorNorm, fit
from .plan import CompressionPlan, LayerPlan, Method, Objective
from .pretrained import compression_of, record_compression
from .replacement import model_bytes, replaced_modules, to_module
from .report import CompressionReport, LayerReport
from .sequential import InputShift, fit_in_sequence

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def compress(
    model: nn.Module,
    ratio: float | None = None,
    method: Method | None = None,
    *,
    plan: CompressionPlan | None = None,
    calibration: Batches | Iterable[str] | Statistics | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    sequential: bool | Batches | Iterable[str] | None = None,
    block: tuple[int, int] | None = None,
    rank_multiple: int | None = None,
    low_rank_share: float | None = None,
    objective: Objective | None = None,
    selection: Selection | None = None,
    layers: str | None = None,
    quiet: bool = False,
) -> CompressionReport:
    """Replace linears of a model by compressed modules, in place, all or nothing.

    ratio, method, block, rank_multiple, low_rank_share, objective, selection, layers: of
    `lada_ops.plan`, with its defaults (5.0, "low_rank", ...).
    plan: a plan in the place of all these.
    calibration: text like the model's own, some 10,000 tokens of it: batches, each a dict of the
    model's inputs as a tokenizer returns it; or a list of texts; or `layer_statistics` of batches.
    The weights are then fitted to their inputs and to what their errors do to the model's outputs,
    and biases make up for lost means, which keeps far more accuracy than fitting weights alone.
    tokenizer: for texts; by default the one in the folder or hub repository that the model is from.
    sequential: each linear is fitted on the activations of the already compressed ones (see
    `fit_in_sequence`), which keeps more accuracy still and takes minutes. By default with the
    batches of `calibration`, where it has any; or with other batches, such as a part of those that
    given statistics are of; or, if False, not at all.
    Plan and report are recorded in ``model.config``, so that `save_pretrained` keeps them; build
    another model from a copy of the config, or it shares them.

    Raises ValueError or TypeError, the model unchanged, as `lada_ops.plan` does; where the plan is
    for another model or given with what it replaces, calibration is neither of the three, a weight
    or the calibration holds NaN, or calibration is missing or superfluous for the objective.
    """
    check_module("compress", model, values=True)
    compression_of(model)  # raises if another method quantized the model
    options = {
        "ratio": ratio,
        "method": method,
        "block": block,
        "rank_multiple": rank_multiple,
        "low_rank_share": low_rank_share,
        "objective": objective,
        "selection": selection,
        "layers": layers,
    }
    given = {name: value for name, value in options.items() if value is not None}
    if plan is not None and given:
        raise ValueError(
            f"compress: {', '.join(given)} given with a plan; expected either, since the plan says "
            "what each linear becomes"
        )
    # before the statistics, which take long, so that errors of the options come first
    planned = budget.plan(model, **given) if plan is None else plan
    linears = _planned_linears(model, planned)
    batches = None
    if calibration is not None and not isinstance(calibration, Mapping):
        calibration = batches = listed_batches("calibration", calibration, model, tokenizer)
    _check_objective(planned.objective, calibration is not None)
    if sequential is False:
        batches = None
    elif sequential is not None and sequential is not True:
        batches = listed_batches("sequential", sequential, model, tokenizer)
    if (batches is None and sequential is True) or (calibration is None and batches is not None):
        raise ValueError(
            "compress: sequential without batches of calibration; expected them as calibration, or "
            "as sequential where calibration is statistics"
        )
    statistics = statistics_of(model, linears, calibration, quiet)
    if plan is None and statistics:
        planned = budget.plan(model, calibration=statistics, **given)
    return _replace_linears(model, planned, linears, statistics, batches, quiet)


def _check_objective(objective: Objective, calibrated: bool) -> None:
    if not calibrated and objective not in ("auto", "weights"):
        raise ValueError(
            f"compress: calibration None for a plan with objective {objective!r}; expected "
            "batches of the model's inputs, or a plan with objective 'weights' or 'auto'"
        )
    if calibrated and objective == "weights":
        raise ValueError(
            "compress: calibration given for a plan with objective 'weights'; expected None, or a "
            "plan with another objective"
        )


def _replace_linears(
    model: nn.Module,
    plan: CompressionPlan,
    linears: Mapping[str, nn.Linear],
    statistics: Statistics,
    batches: Batches | None,
    quiet: bool,
) -> CompressionReport:
    """Fit every planned linear, in sequence where there are batches, and replace them all."""
    objective = plan.objective
    if objective == "auto":
        objective = "outputs" if statistics else "weights"
    bytes_dense = model_bytes(model)
    modules: dict[str, CompressedLinear] = {}
    layers: dict[str, LayerReport] = {}
    with progress_bar(quiet) as progress:
        task = progress.add_task("compression", total=len(linears))

        def replacement(name: str, shift: InputShift | None = None) -> CompressedLinear:
            linear, layer = linears[name], plan.layers[name]
            layer_statistics = statistics.get(name)
            if layer_statistics is None:
                weight = fit(linear.weight, layer)
            else:
                shift = shift or InputShift.none(linear, layer_statistics)
                norm = ErrorNorm.of(objective, shift.inputs, layer_statistics.outputs)
                weight = fit(shift.target(linear.weight), layer, norm, plan.selection)
                weight = weight.to(linear.weight.dtype)
            module = modules[name] = to_module(weight, linear)
            if shift is not None:
                _correct_bias(module, linear, shift)
            layers[name] = _layer_report(layer, objective, linear, weight, shift)
            progress.advance(task)
            return module

        if batches is not None:
            fit_in_sequence(model, linears, batches, replacement)
        for name, linear in linears.items():
            module = modules.get(name) or replacement(name)
            module.train(linear.training)  # the sequential pass ran in eval mode
    with replaced_modules(model, modules):
        in_order = {name: layers[name] for name in linears}
        report = CompressionReport(in_order, bytes_dense, model_bytes(model))
        record_compression(model, plan, report)
    return report


@torch.no_grad()
def _correct_bias(module: CompressedLinear, linear: nn.Linear, shift: InputShift) -> None:
    if module.bias is not None:
        weight = module.format.to(torch.float64).to_dense()
        module.bias.copy_(shift.corrected_bias(linear.bias, linear.weight, weight))


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
    shift: InputShift | None,
) -> LayerReport:
    dense, now = linear.weight.double(), weight.to_dense().double()
    bias = Counts() if linear.bias is None else Counts.of(linear.bias, flops_per_value=1)
    return LayerReport(
        plan,
        objective,
        _relative((dense - now).square().sum(), dense.square().sum()),
        None if shift is None else shift.error(linear, now),
        Counts.of(linear.weight) + bias,
        weight.counts() + bias,
    )


def _relative(squared_error: Tensor, squared_norm: Tensor) -> float:
    return float((squared_error.clamp(min=0) / squared_norm.clamp(min=1e-300)).sqrt())
