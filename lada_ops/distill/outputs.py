"""Forward pass of a student or a teacher, with the hidden states and attention scores it computes.

Attention scores are computed from the recorded outputs of the query and key linears, so they do not
depend on the implementation of attention (eager, SDPA, flash).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from ..architectures.layers import LAYERS
from .losses import Losses, Outputs


def forward(model: nn.Module, inputs: Mapping[str, Any], losses: Losses) -> Outputs:
    """Outputs of `model` (or its data-parallel wrapper) for a batch, as far as `losses` need them.

    Raises ValueError where the attention loss is on and the layers' query and key linears are not
    known.
    """
    unwrapped = getattr(model, "module", model)
    with recorded_queries_and_keys(unwrapped, bool(losses.attention)) as layers:
        outputs = model(**inputs, output_hidden_states=losses.needs_hidden, return_dict=True)
    return Outputs(
        getattr(outputs, "loss", None),
        getattr(outputs, "logits", None),
        outputs.hidden_states if losses.needs_hidden else (),
        [_attention_scores(layer["query"], layer["key"]) for layer in layers],
    )


def _attention_scores(query: Tensor, key: Tensor) -> Tensor:
    """Scaled dot products (batch, heads, length, length), before the mask and the softmax."""
    return query @ key.transpose(-1, -2) * key.shape[-1] ** -0.5


@contextmanager
def recorded_queries_and_keys(model: nn.Module, record: bool) -> Iterator[list[dict[str, Tensor]]]:
    """Context in which the forward pass records "query" and "key" of each layer, in order.

    Each is (batch, heads, length, head size). Without `record` the list stays empty.
    """
    recorded: list[dict[str, Tensor]] = []
    handles = []

    def keep(
        layer: dict[str, Tensor], role: str, _linear: nn.Module, _: Any, output: Tensor
    ) -> None:
        layer[role] = output.unflatten(-1, (-1, head_size)).transpose(1, 2)

    try:
        head_size = _head_size(model) if record else 0
        for layer in _layers(model) if record else ():
            recorded.append({})
            for role, name in zip(("query", "key"), LAYERS[type(layer).__name__].qkv, strict=False):
                hook = partial(keep, recorded[-1], role)
                handles.append(layer.get_submodule(name).register_forward_hook(hook))
        yield recorded
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
