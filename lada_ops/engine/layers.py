"""Which encoders the native kernels can run whole, and where their layers keep what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from ..modules.compressed_linear import CompressedLinear


@dataclass(frozen=True)
class LayerNames:
    """Submodules of a layer that is ``x = LN(x + out(attention(x))); x = LN(x + down(up(x)))``."""

    qkv: tuple[str, str, str]
    out: str
    attention_norm: str
    up: str
    down: str
    output_norm: str

    @property
    def linears(self) -> tuple[str, ...]:
        return *self.qkv, self.out, self.up, self.down


_BERT = LayerNames(
    qkv=("attention.self.query", "attention.self.key", "attention.self.value"),
    out="attention.output.dense",
    attention_norm="attention.output.LayerNorm",
    up="intermediate.dense",
    down="output.dense",
    output_norm="output.LayerNorm",
)
_DISTILBERT = LayerNames(
    qkv=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
    out="attention.out_lin",
    attention_norm="sa_layer_norm",
    up="ffn.lin1",
    down="ffn.lin2",
    output_norm="output_layer_norm",
)
LAYERS = {  # by the class of the layer; others of these names are not known to compute the same
    "BertLayer": _BERT,
    "RobertaLayer": _BERT,
    "XLMRobertaLayer": _BERT,
    "CamembertLayer": _BERT,
    "ElectraLayer": _BERT,
    "TransformerBlock": _DISTILBERT,
}
MAX_STRIPE = 32  # queries, keys and values fill whole stripes of columns

ACTIVATIONS = {  # of Hugging Face's configs, as the kernels name them
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


@dataclass(frozen=True)
class FoundEncoder:
    """A module that runs its `layers` one after the other, which the native kernels can do."""

    module: nn.Module
    layers: list[nn.Module]
    names: LayerNames
    config: Any
    activation: str


def find_encoders(model: nn.Module) -> dict[str, FoundEncoder | str]:
    """The encoders of `model` by name; of those that the kernels cannot run whole, the reason."""
    found: dict[str, FoundEncoder | str] = {}
    for name, module in model.named_modules():
        layers = getattr(module, "layer", None)
        if isinstance(layers, nn.ModuleList) and len(layers):
            config = getattr(module, "config", getattr(model, "config", None))
            found[name] = _examined(module, list(layers), config)
    return found


def _examined(module: nn.Module, layers: list[nn.Module], config: Any) -> FoundEncoder | str:
    kind = type(layers[0]).__name__
    if not type(layers[0]).__module__.startswith("transformers.models."):
        return f"layers of {kind} are not those of transformers"
    names = LAYERS.get(kind)
    if names is None:
        return f"layers of {kind} are not known; known are {', '.join(LAYERS)}"
    activation = getattr(config, "hidden_act", None) or getattr(config, "activation", None)
    if activation not in ACTIVATIONS:
        return f"activation {activation!r} is not known; known are {', '.join(ACTIVATIONS)}"
    if getattr(config, "is_decoder", False) or getattr(config, "add_cross_attention", False):
        return "it is a decoder"
    reason = _unfit(layers, names)
    if reason is not None:
        return reason
    return FoundEncoder(module, layers, names, config, ACTIVATIONS[activation])


def _unfit(layers: list[nn.Module], names: LayerNames) -> str | None:
    for i, layer in enumerate(layers):
        if type(layer) is not type(layers[0]):
            return f"layer {i} is a {type(layer).__name__}"
        within = dict(layer.named_modules())
        for name in (*names.linears, names.attention_norm, names.output_norm):
            if name not in within:
                return f"layer {i} has no {name}"
        for linear in (within[name] for name in names.linears):
            if type(linear) is not nn.Linear and not isinstance(linear, CompressedLinear):
                return f"layer {i} has a {type(linear).__name__}"
            if isinstance(linear, CompressedLinear) and linear.activation != "none":
                return f"layer {i} has a linear with an activation"
        features: Any = within[names.out].out_features
        if features % MAX_STRIPE:
            return f"layer {i} has features that are no multiple of {MAX_STRIPE}"
        for norm in (within[names.attention_norm], within[names.output_norm]):
            if not isinstance(norm, nn.LayerNorm):
                return f"layer {i} has a {type(norm).__name__}"
            if norm.weight is None or norm.bias is None:
                return f"layer {i} has a LayerNorm without weight or bias"
    return None
