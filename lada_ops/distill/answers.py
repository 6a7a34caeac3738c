"""Asks a model, and sees what its layers make of the question: hidden states, attention scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from ..architectures.layers import LAYERS
from .losses import Answer, Losses


def ask(model: nn.Module, inputs: Mapping[str, Any], losses: Losses) -> Answer:
    """What `model`, wrapped for data parallelism or not, gives for a batch, as `losses` want it.

    Raises ValueError where attention counts and the layers are not known.
    """
    own = getattr(model, "module", model)
    with recorded_scores(own, bool(losses.attention)) as scores:
        outputs = model(**inputs, output_hidden_states=losses.of_hidden, return_dict=True)
    return Answer(
        getattr(outputs, "loss", None),
        getattr(outputs, "logits", None),
        outputs.hidden_states if losses.of_hidden else (),
        [of["query"] @ of["key"].transpose(-1, -2) * of["key"].shape[-1] ** -0.5 for of in scores],
    )


@contextmanager
def recorded_scores(model: nn.Module, record: bool) -> Iterator[list[dict[str, Tensor]]]:
    """Queries and keys (batch, heads, length, features of a head) of the layers that run.

    They are what two linears of a layer give, so any implementation of attention will do.
    """
    found: list[dict[str, Tensor]] = []
    handles = []

    def keep(
        into: dict[str, Tensor], role: str, _linear: nn.Module, _: Any, output: Tensor
    ) -> None:
        into[role] = output.unflatten(-1, (-1, size)).transpose(1, 2)

    try:
        size = _head_size(model) if record else 0
        for layer in _layers(model) if record else ():
            found.append({})
            for role, name in zip(("query", "key"), LAYERS[type(layer).__name__].qkv, strict=False):
                hook = partial(keep, found[-1], role)
                handles.append(layer.get_submodule(name).register_forward_hook(hook))
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _layers(model: nn.Module) -> list[nn.Module]:
    layers = [module for module in model.modules() if type(module).__name__ in LAYERS]
    if not layers or len(LAYERS[type(layers[0]).__name__].qkv) != 3:
        known = ", ".join(name for name, layer in LAYERS.items() if len(layer.qkv) == 3)
        raise ValueError(
            f"Losses: attention above 0 for a {type(model).__name__}; expected layers with linears "
            f"for queries and keys ({known}), or attention 0"
        )
    return layers


def _head_size(model: nn.Module) -> int:
    config: Any = model.config
    config = config.get_text_config()
    return config.hidden_size // config.num_attention_heads
