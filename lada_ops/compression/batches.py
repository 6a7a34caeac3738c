"""Calibration batches: made of texts, run through a model, and stripped of their padding."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .pretrained import pretrained_models

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Batches: TypeAlias = Iterable[Mapping[str, Any]]
NO_BATCH = "no batches; expected at least one, in no iterator that was read to its end before"


def listed_batches(
    argument: str,
    batches: Batches | Iterable[str],
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Sequence[Mapping[str, Any]]:
    """List of the batches, those of the texts where texts are given.

    tokenizer: by default the one in the folder or hub repository that the model was loaded from.

    Raises TypeError on what is neither, ValueError on none at all, or without a tokenizer.
    """
    if isinstance(batches, str) or not hasattr(batches, "__iter__"):
        raise TypeError(
            f"{argument} is {type(batches).__name__}; expected a list of batches, each a dict of "
            "the model's inputs, a list of texts, or, of calibration, what "
            "lada_ops.layer_statistics returns"
        )
    items: list[Any] = list(batches)
    if not items:
        raise ValueError(f"{argument}: {NO_BATCH}")
    if not all(isinstance(item, str) for item in items):
        return items  # `model_inputs` refuses any that is no batch
    from ..data.texts import MAX_LENGTH, token_batches

    found = pretrained_models(model).values()
    length = min([MAX_LENGTH, *map(longest, found)])
    return token_batches(tokenizer or _tokenizer(argument, found), items, max_length=length)


def _tokenizer(argument: str, models: Iterable[PreTrainedModel]) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    name = next((model.name_or_path for model in models if model.name_or_path), None)
    try:
        if name is not None:
            return AutoTokenizer.from_pretrained(name)
        reason = "the model was loaded from no folder"
    except (OSError, ValueError) as error:
        reason = str(error)
    raise ValueError(
        f"{argument}: texts without a tokenizer ({reason}); expected tokenizer=, or batches"
    )


def longest(model: PreTrainedModel) -> int:
    """Tokens of the longest text that the model has positions for."""
    config = model.config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None) or 2**31
    # roberta and its kin count positions from the one after the padding
    return positions - 2 if "roberta" in config.model_type else positions


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Context in which all modules are in eval mode; each gets its own mode back at the end."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def model_inputs(batch: Any, index: int, device: torch.device) -> dict[str, Any]:
    """Inputs of a batch, on the device. Raises TypeError, with its index, if it is no dict."""
    if not isinstance(batch, Mapping):
        raise TypeError(
            f"calibration: batch {index} is {type(batch).__name__}; expected a dict of the "
            "model's inputs, as a tokenizer returns it"
        )
    named = batch.get("input")  # name of the argument of nn.Sequential
    return {
        name: value.to(device) if isinstance(value, Tensor) else value
        for name, value in (named if isinstance(named, Mapping) else batch).items()
    }


def call_model(model: nn.Module, inputs: dict[str, Any]) -> Any:
    """Outputs of the model for a batch."""
    if isinstance(model, nn.Sequential) and "input" not in inputs:
        # sentence-transformers' models take the dict itself, and write into it
        return model(dict(inputs))
    return model(**inputs)


def token_mask(inputs: Mapping[str, Any], device: torch.device) -> Tensor | None:
    """Mask (batch, length) bool of the real tokens of a batch; None without attention_mask."""
    mask = inputs.get("attention_mask")
    return None if mask is None else torch.as_tensor(mask, device=device).bool()


@torch.no_grad()
def real_tokens(x: Tensor, mask: Tensor | None) -> Tensor:
    """Real tokens (tokens, features) of x (..., features)."""
    if mask is not None and x.shape[:-1] == mask.shape:
        return x[mask]
    return x.reshape(-1, x.shape[-1])


def differentiable(outputs: Any) -> Tensor:
    """First tensor of a model's outputs that has a gradient; some models return inputs as well.

    Raises ValueError where there is none.
    """
    values = outputs.values() if isinstance(outputs, Mapping) else outputs
    for value in values if not isinstance(outputs, Tensor) else (outputs,):
        if isinstance(value, Tensor) and value.requires_grad:
            return value
    raise ValueError(
        f"calibration: no tensor of what the model answers, {type(outputs).__name__}, has a "
        "gradient; expected one that depends on its linears"
    )
