"""Calibration statistics of each linear: second moments of inputs and output gradients (K-FAC)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ..architectures.encoders import encoder_linears
from ..host.progress import progress_bar
from ..modules.checks import check_module
from .batches import (
    NO_BATCH,
    Batches,
    call_model,
    differentiable,
    eval_mode,
    model_inputs,
    real_tokens,
    token_mask,
)


@dataclass(frozen=True, eq=False)
class LayerStatistics:
    """Second moments of a linear with weight (out, in), as means over tokens, in fp64.

    inputs: ``X X^T`` (in, in) of its inputs X. mean: (in,), of its inputs. outputs: ``D D^T`` (out,
    out) of the gradients D of ``z . y`` at its outputs, with y the model's output and z standard
    normal: an error E of the linear's outputs changes y by about ``tr(E^T outputs E)`` (the
    Gauss-Newton matrix of the squared error of y, as K-FAC factors it: Martens and Grosse, ICML
    2015).
    """

    inputs: Tensor
    mean: Tensor
    outputs: Tensor

    def centred_for(self, linear: nn.Linear) -> LayerStatistics:
        """Statistics whose `inputs` are the covariance of the inputs, if `linear` has a bias.

        The bias then becomes ``bias + (W - W') mean``, so that an error of the weight counts by the
        covariance alone.
        """
        if linear.bias is None:
            return self
        return replace(self, inputs=centred(self.inputs, self.mean, self.mean))


# below 1, since rounding would make the covariance of constant inputs indefinite
MEAN_SHARE = 1 - 1e-6

Statistics: TypeAlias = Mapping[str, LayerStatistics]


def centred(product: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Covariance of x and y, but for a millionth of their means: ``E[x y^T] - E[x] E[y]^T``."""
    return product - MEAN_SHARE * torch.outer(first, second)


def statistics_of(
    model: nn.Module, names: Iterable[str], calibration: Batches | Statistics | None, quiet: bool
) -> Statistics:
    """Statistics of each named linear, from batches or from `layer_statistics`; empty for None.

    Raises the errors of `layer_statistics`, and ValueError where a tensor is not of its linear's
    size.
    """
    if calibration is None:
        return {}
    if not isinstance(calibration, Mapping):
        return _statistics(model, names, calibration, quiet)
    given: Mapping[Any, Any] = calibration
    checked = {}
    for name in names:
        linear, statistics = model.get_submodule(name), given.get(name)
        within, out = linear.in_features, linear.out_features
        checked[name] = LayerStatistics(
            _checked(name, "inputs", statistics, (within, within), linear),
            _checked(name, "mean", statistics, (within,), linear),
            _checked(name, "outputs", statistics, (out, out), linear),
        )
    return checked


def _checked(
    name: str, part: str, statistics: Any, shape: tuple[Any, ...], linear: nn.Module
) -> Tensor:
    tensor = getattr(statistics, part, None)
    if not isinstance(tensor, Tensor) or tensor.shape != shape:
        got = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(statistics).__name__
        raise ValueError(
            f"calibration: {got} for {name}; expected its {part} {shape}, as "
            "lada_ops.layer_statistics gives them, or a list of batches: a single one goes in a "
            "list"
        )
    if not tensor.isfinite().all():
        raise ValueError(f"calibration: the {part} of {name} hold NaN or infinity")
    return tensor.to(next(linear.parameters()).device, torch.float64)


def layer_statistics(
    model: nn.Module,
    batches: Batches,
    layers: str | None = None,
    quiet: bool = False,
) -> dict[str, LayerStatistics]:
    """Calibration statistics of each linear, over all batches; deterministic.

    `plan` and `compress` take the result in the place of the batches, which then run only once for
    any number of compressed models.

    batches: dicts of the model's inputs, as a tokenizer returns them, moved to the model's device;
    a sentence-transformers model takes those of its own `tokenize` or `preprocess`. Its output then
    counts as the hidden states of the tokens, not as the sentence embedding, which keeps far more
    of a retrieval's accuracy.
    layers: a regular expression for the names of the linears, by default the encoder's.
    Tokens whose attention_mask is 0 are left out. The model runs in eval mode, forward and
    backward; its modules and parameters are left as they were.

    Raises TypeError on what is no model or a batch that is no dict; ValueError where there is no
    batch, a linear never ran, or its inputs or gradients hold NaN or infinity.
    """
    check_module("layer_statistics", model, values=True)
    return _statistics(model, encoder_linears(model, layers), batches, quiet)


def _statistics(
    model: nn.Module, names: Iterable[str], batches: Batches, quiet: bool
) -> dict[str, LayerStatistics]:
    device = next(model.parameters()).device
    collector = _Collector({name: model.get_submodule(name) for name in names})
    weights = [p for m in collector.linears.values() for p in m.parameters()]
    flags = [weight.requires_grad for weight in weights]
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.callback(_restore, weights, flags)
        stack.enter_context(eval_mode(model))
        for weight in weights:
            weight.requires_grad_()  # or the outputs have no gradient
        collector.hook(stack)
        progress = stack.enter_context(progress_bar(quiet))
        task = progress.add_task("calibration", total=_length(batches))
        index = None
        for index, batch in enumerate(batches):
            inputs = model_inputs(batch, index, device)
            collector.start(token_mask(inputs, device))
            collector.finish(call_model(model, inputs))
            progress.advance(task)
        if index is None:
            raise ValueError(f"calibration: {NO_BATCH}")
    return collector.statistics()


def _restore(weights: list[nn.Parameter], flags: list[bool]) -> None:
    for weight, flag in zip(weights, flags, strict=True):
        weight.requires_grad_(flag)


class _Collector:
    def __init__(self, linears: Mapping[str, nn.Module]) -> None:
        self.linears = linears
        self.inputs: dict[str, Tensor] = {}
        self.totals: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}
        self.tokens = dict.fromkeys(linears, 0)
        self.mask: Tensor | None = None
        self.last: tuple[Tensor, Tensor, Tensor, int] | None = None
        self.linear_outputs: list[tuple[str, Tensor]] = []
        self.generator = torch.Generator("cpu").manual_seed(0)

    def hook(self, stack: ExitStack) -> None:
        for name, linear in self.linears.items():
            handle = linear.register_forward_hook(partial(self.add, name))
            stack.callback(handle.remove)

    def start(self, mask: Tensor | None) -> None:
        self.mask = mask
        self.last = None  # the next batch may pass the same tensor with another mask
        self.linear_outputs = []

    def add(self, name: str, _linear: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        x = args[0]
        if self.last is None or x is not self.last[0]:  # query, key and value share one input
            rows = real_tokens(x, self.mask).double()
            self.last = x, rows.T @ rows, rows.sum(0), rows.shape[0]
        _, product, total, tokens = self.last
        _add(self.inputs, name, product)
        _add(self.totals, name, total)
        self.tokens[name] += tokens
        self.linear_outputs.append((name, output))

    def finish(self, outputs: Any) -> None:
        """Add the moments of the gradients of a random mixture ``z . y`` of the model's outputs."""
        if not self.linear_outputs:
            return
        y = differentiable(outputs)
        drawn = {"generator": self.generator, "dtype": torch.float32, "device": "cpu"}
        z = torch.randn(y.shape, **drawn).to(y.device, y.dtype)
        if self.mask is not None and y.shape[:-1] == self.mask.shape:
            z *= self.mask[..., None]
            y = y.masked_fill(~self.mask[..., None], 0)  # padding may be NaN
        mixture = (y * z).sum()
        tensors = [output for _, output in self.linear_outputs]
        gradients = torch.autograd.grad(mixture, tensors, allow_unused=True)
        for (name, output), gradient in zip(self.linear_outputs, gradients, strict=True):
            gradient = torch.zeros_like(output) if gradient is None else gradient
            _add(self.outputs, name, _random_moments(real_tokens(gradient, self.mask)))
        self.linear_outputs = []

    def statistics(self) -> dict[str, LayerStatistics]:
        silent = [name for name, tokens in self.tokens.items() if tokens == 0]
        if silent:
            raise ValueError(
                f"calibration: no token reached {silent[0]}"
                f"{f' and {len(silent) - 1} more' if len(silent) > 1 else ''}; "
                "expected at least one batch with unmasked tokens"
            )
        for side, sums in (("inputs", self.inputs), ("gradients", self.outputs)):
            for name, product in sums.items():
                if not product.isfinite().all():
                    raise ValueError(f"calibration: the {side} of {name} hold NaN or infinity")
        return {
            name: LayerStatistics(
                self.inputs[name] / tokens, self.totals[name] / tokens, self.outputs[name] / tokens
            )
            for name, tokens in self.tokens.items()
        }


def _random_moments(rows: Tensor) -> Tensor:
    """``rows^T rows`` (features, features) in fp64, of random rows.

    They are estimates, so products in fp32 are exact enough, and much faster. A power of two first
    scales the rows, since products that underflow are no longer positive definite.
    """
    largest = rows.double().abs().amax() if rows.numel() else rows.new_ones((), dtype=torch.double)
    scale = torch.exp2(torch.frexp(largest).exponent.double())
    rows = (rows / scale).float()
    return (rows.T @ rows).double() * scale.square()


def _add(sums: dict[str, Tensor], name: str, product: Tensor) -> None:
    if name in sums:
        sums[name] += product
    else:
        sums[name] = product.clone()


def _length(batches: Iterable[Any]) -> int | None:
    try:
        return len(batches)  # type: ignore[arg-type]
    except TypeError:
        return None
