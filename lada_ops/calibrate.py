"""Gram matrices of the inputs of linears, from calibration batches run through the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from .encoders import encoder_linears
from .progress import progress_bar

Batches: TypeAlias = Iterable[Mapping[str, Any]]
Grams: TypeAlias = Mapping[str, Tensor]


def grams_of(
    model: nn.Module, names: Iterable[str], calibration: Batches | Grams | None, quiet: bool
) -> Grams:
    """The Gram matrix of each named linear, from batches or from `input_grams`; empty for None.

    Raises as `input_grams` does, and ValueError where a matrix given is not of its linear's size.
    """
    if calibration is None:
        return {}
    if not isinstance(calibration, Mapping):
        return _input_grams(model, names, calibration, quiet)
    given: Mapping[Any, Any] = calibration
    grams = {}
    for name in names:
        linear = model.get_submodule(name)
        gram, size = given.get(name), linear.in_features
        if not isinstance(gram, Tensor) or gram.shape != (size, size):
            got = tuple(gram.shape) if isinstance(gram, Tensor) else type(gram).__name__
            raise ValueError(
                f"calibration: {got} for {name}; expected its Gram matrix ({size}, {size}), as "
                "lada_ops.input_grams gives it, or a list of batches: a single one goes in a list"
            )
        if not gram.isfinite().all():
            raise ValueError(f"calibration: the Gram matrix of {name} holds NaN or infinity")
        grams[name] = gram.to(next(linear.parameters()).device, torch.float64)
    return grams


def input_grams(
    model: nn.Module,
    batches: Batches,
    layers: str | None = None,
    quiet: bool = False,
) -> dict[str, Tensor]:
    """``X X^T / tokens`` (in, in) in fp64 of the inputs of each linear, over all batches.

    `plan` and `compress` take the result in the place of the batches, which need then be run only
    once, however many compressed models are made.

    batches: dicts of the model's inputs, as a tokenizer returns them, moved to the model's device.
    layers: a regular expression for the names of the linears, by default the encoder's.
    Tokens whose attention_mask is 0 are left out. The model runs in eval mode, and all its modules
    are left in the mode they were in.

    Raises TypeError on a batch that is no dict; ValueError where there is no batch, a linear never
    ran, or its inputs hold NaN or infinity.
    """
    return _input_grams(model, encoder_linears(model, layers), batches, quiet)


@torch.no_grad()
def _input_grams(
    model: nn.Module, names: Iterable[str], batches: Batches, quiet: bool
) -> dict[str, Tensor]:
    device = next(model.parameters()).device
    collector = _Collector({name: model.get_submodule(name) for name in names})
    modes = {module: module.training for module in model.modules()}
    with ExitStack() as stack:
        stack.callback(_set_modes, modes)
        model.eval()
        collector.hook(stack)
        progress = stack.enter_context(progress_bar(quiet))
        task = progress.add_task("calibration", total=_length(batches))
        for index, batch in enumerate(batches):
            if not isinstance(batch, Mapping):
                raise TypeError(
                    f"calibration: batch {index} is {type(batch).__name__}; expected a dict of the "
                    "model's inputs, as a tokenizer returns it"
                )
            inputs = {
                name: value.to(device) if isinstance(value, Tensor) else value
                for name, value in batch.items()
            }
            collector.start(inputs.get("attention_mask"))
            model(**inputs)
            progress.advance(task)
    return collector.grams()


def _set_modes(modes: Mapping[nn.Module, bool]) -> None:
    for module, training in modes.items():
        module.training = training


class _Collector:
    def __init__(self, linears: Mapping[str, nn.Module]) -> None:
        self.linears = linears
        self.sums: dict[str, Tensor] = {}
        self.tokens = dict.fromkeys(linears, 0)
        self.mask: Tensor | None = None
        self.last: tuple[Tensor | None, Tensor | None, int] = (None, None, 0)

    def hook(self, stack: ExitStack) -> None:
        for name, linear in self.linears.items():
            handle = linear.register_forward_pre_hook(partial(self.add, name))
            stack.callback(handle.remove)

    def start(self, attention_mask: Tensor | None) -> None:
        self.mask = None if attention_mask is None else torch.as_tensor(attention_mask).bool()
        self.last = None, None, 0  # the next batch may pass the same tensor with another mask

    def add(self, name: str, _linear: nn.Module, args: tuple[Tensor, ...]) -> None:
        x = args[0]
        if x is not self.last[0]:  # query, key and value share one input: multiply it once
            if self.mask is not None and x.shape[:-1] == self.mask.shape:
                rows = x[self.mask].double()
            else:
                rows = x.reshape(-1, x.shape[-1]).double()
            self.last = x, rows.T @ rows, rows.shape[0]
        _, product, tokens = self.last
        assert product is not None
        if name in self.sums:
            self.sums[name] += product
        else:
            self.sums[name] = product.clone()
        self.tokens[name] += tokens

    def grams(self) -> dict[str, Tensor]:
        silent = [name for name, tokens in self.tokens.items() if tokens == 0]
        if silent:
            raise ValueError(
                f"calibration: no token reached {silent[0]}"
                f"{f' and {len(silent) - 1} more' if len(silent) > 1 else ''}; "
                "expected at least one batch with unmasked tokens"
            )
        for name, gram in self.sums.items():
            if not gram.isfinite().all():
                raise ValueError(f"calibration: the inputs of {name} hold NaN or infinity")
        return {name: gram / self.tokens[name] for name, gram in self.sums.items()}


def _length(batches: Iterable[Any]) -> int | None:
    try:
        return len(batches)  # type: ignore[arg-type]
    except TypeError:
        return None
