"""A model run on calibration batches: what a batch may be, and which of its tokens count."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put all modules in eval mode, and afterwards each in the mode it was in."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def model_inputs(batch: Any, index: int, device: torch.device) -> dict[str, Any]:
    """A batch on the device. Raises TypeError, with its index, if it is no dict."""
    if not isinstance(batch, Mapping):
        raise TypeError(
            f"calibration: batch {index} is {type(batch).__name__}; expected a dict of the "
            "model's inputs, as a tokenizer returns it"
        )
    named = batch.get("input")  # a sequence of modules calls its argument so
    return {
        name: value.to(device) if isinstance(value, Tensor) else value
        for name, value in (named if isinstance(named, Mapping) else batch).items()
    }


def call_model(model: nn.Module, inputs: dict[str, Any]) -> Any:
    """Answer of the model to a batch."""
    if isinstance(model, nn.Sequential) and "input" not in inputs:
        # as sentence-transformers' models: the dict is their input, and they write into it
        return model(dict(inputs))
    return model(**inputs)


def token_mask(inputs: Mapping[str, Any], device: torch.device) -> Tensor | None:
    """Mask of the real tokens of a batch, (batch, length) bool, if it says so."""
    mask = inputs.get("attention_mask")
    return None if mask is None else torch.as_tensor(mask, device=device).bool()


@torch.no_grad()
def real_tokens(x: Tensor, mask: Tensor | None) -> Tensor:
    """The tokens that count (tokens, features) of x (..., features)."""
    if mask is not None and x.shape[:-1] == mask.shape:
        return x[mask]
    return x.reshape(-1, x.shape[-1])


def differentiable(answer: Any) -> Tensor:
    """The first tensor of an answer that depends on the linears: inputs may come back, too."""
    values = answer.values() if isinstance(answer, Mapping) else answer
    for value in values if not isinstance(answer, Tensor) else (answer,):
        if isinstance(value, Tensor) and value.requires_grad:
            return value
    raise ValueError(
        f"calibration: no tensor of what the model answers, {type(answer).__name__}, has a "
        "gradient; expected one that depends on its linears"
    )
