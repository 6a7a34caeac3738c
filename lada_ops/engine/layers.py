"""Which encoders the native kernels can run whole, and where their layers keep what."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..modules.compressed_linear import CompressedLinear
from ..modules.packed_linear import PackedLinear
from ..reference import ACTIVATIONS


@dataclass(frozen=True)
class LayerNames:
    """Submodules of a layer that computes what `layer_ref` does.

    in_tuple: whether its output comes in one.
    """

    qkv: tuple[str, str, str]
    out: str
    attention_norm: str
    up: str
    down: str
    output_norm: str
    in_tuple: bool = False

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
_MPNET = LayerNames(
    qkv=("attention.attn.q", "attention.attn.k", "attention.attn.v"),
    out="attention.attn.o",
    attention_norm="attention.LayerNorm",
    up="intermediate.dense",
    down="output.dense",
    output_norm="output.LayerNorm",
    in_tuple=True,
)
LAYERS = {  # by the class of the layer; others of these names are not known to compute the same
    "BertLayer": _BERT,
    "RobertaLayer": _BERT,
    "XLMRobertaLayer": _BERT,
    "CamembertLayer": _BERT,
    "ElectraLayer": _BERT,
    "TransformerBlock": _DISTILBERT,
    "MPNetLayer": _MPNET,
}
BIASED = {"MPNetLayer": "compute_position_bias"}
"""Layers whose encoder adds to the scores what a method of its makes of x's size: (batch, heads,
length, length), which depends on the distance of query and key alone."""
MODELS = ("BertModel", "RobertaModel", "XLMRobertaModel", "CamembertModel")
"""Those that are `embeddings`, an `encoder` and perhaps a `pooler`, one after the other."""
_TOLERANCE = 1e-4  # of outputs near 1: those of a LayerNorm; tanh for erf in GELU is 5e-4 off
MAX_STRIPE = 32  # queries, keys and values fill whole stripes of columns

_LISTS = ("layer", "layers", "albert_layer_groups")  # where transformers keeps an encoder's layers

_ACTIVATION_NAMES = {  # of Hugging Face's configs, as the kernels name them
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


@dataclass(frozen=True)
class FoundEncoder:
    """A module that runs its `layers` one after the other, which the native kernels can do.

    model: the one of `MODELS` around it, None if there is none.
    """

    model: nn.Module | None
    module: nn.Module
    layers: list[nn.Module]
    names: LayerNames
    config: Any
    activation: str

    def position_bias(self, length: int, device: torch.device | None = None) -> Tensor | None:
        """What is added to the scores of one sequence, (1, heads, length, length), if anything."""
        method = BIASED.get(type(self.layers[0]).__name__)
        if method is None:
            return None
        return getattr(self.module, method)(torch.empty(1, length, 0, device=device))


def find_encoders(model: nn.Module) -> dict[str, FoundEncoder | str]:
    """The encoders of `model` by name; of those that the kernels cannot run whole, the reason."""
    found: dict[str, FoundEncoder | str] = {}
    for name, module in model.named_modules():
        for layers in (getattr(module, attribute, None) for attribute in _LISTS):
            if isinstance(layers, nn.ModuleList) and len(layers):
                config = getattr(module, "config", getattr(model, "config", None))
                around = model.get_submodule(name.rpartition(".")[0]) if name else None
                found[name] = _examined(around, module, list(layers), config)
    return found


def layer_ref(
    layer: nn.Module, names: LayerNames, heads: int, activation: str, x: Tensor
) -> Tensor:
    """What the kernels compute of a layer, in plain torch.

    ``a = LN(x + out(attention(x))); y = LN(a + down(act(up(a))))``; x, y (batch, length, features).
    """

    def linear(name: str, x: Tensor) -> Tensor:
        return layer.get_submodule(name)(x)

    def norm(name: str, x: Tensor) -> Tensor:
        module: Any = layer.get_submodule(name)
        return F.layer_norm(x, x.shape[-1:], module.weight, module.bias, module.eps)

    q, k, v = (linear(name, x).unflatten(-1, (heads, -1)).transpose(1, 2) for name in names.qkv)
    attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    a = norm(names.attention_norm, x + linear(names.out, attended))
    up = ACTIVATIONS[activation](linear(names.up, a))
    return norm(names.output_norm, a + linear(names.down, up))


def _examined(
    around: nn.Module | None, module: nn.Module, layers: list[nn.Module], config: Any
) -> FoundEncoder | str:
    kind = type(layers[0]).__name__
    if not _is_of_transformers(layers[0]):
        return f"layers of {kind} are not those of transformers"
    names = LAYERS.get(kind)
    if names is None:
        return f"layers of {kind} are not known; known are {', '.join(LAYERS)}"
    activation = getattr(config, "hidden_act", None) or getattr(config, "activation", None)
    if activation not in _ACTIVATION_NAMES:
        return f"activation {activation!r} is not known; known are {', '.join(_ACTIVATION_NAMES)}"
    if getattr(config, "is_decoder", False) or getattr(config, "add_cross_attention", False):
        return "it is a decoder"
    if "forward" in vars(module):
        return "its forward was replaced"
    known = around if type(around).__name__ in MODELS and _is_of_transformers(around) else None
    found = FoundEncoder(known, module, layers, names, config, _ACTIVATION_NAMES[activation])
    for i, layer in enumerate(layers):
        reason = (
            f"is a {type(layer).__name__}"
            if type(layer) is not type(layers[0])
            else _unfit(layer, names) or _different(layer, found)
        )
        if reason is not None:
            return f"layer {i} {reason}"
    return found


def _is_of_transformers(module: Any) -> bool:
    return type(module).__module__.startswith("transformers.models.")


def _unfit(layer: nn.Module, names: LayerNames) -> str | None:
    within = dict(layer.named_modules())
    for name in (*names.linears, names.attention_norm, names.output_norm):
        if name not in within:
            return f"has no {name}"
    for linear in (within[name] for name in names.linears):
        if type(linear) not in (nn.Linear, PackedLinear) and not isinstance(
            linear, CompressedLinear
        ):
            return f"has a {type(linear).__name__}"
        if getattr(linear, "activation", "none") != "none":
            return "has a linear with an activation"
    features: Any = within[names.out].out_features
    if features % MAX_STRIPE:
        return f"has features that are no multiple of {MAX_STRIPE}"
    for norm in (within[names.attention_norm], within[names.output_norm]):
        if not isinstance(norm, nn.LayerNorm):
            return f"has a {type(norm).__name__}"
        if norm.weight is None or norm.bias is None:
            return "has a LayerNorm without weight or bias"
    for name, module in within.items():
        if "forward" in vars(module):
            return f"has another forward in {name or 'itself'}"
    return None


@torch.no_grad()
def _different(layer: nn.Module, found: FoundEncoder) -> str | None:
    """Why a layer, on a few tokens, computes something else than its class and config say."""
    try:
        layer = copy.deepcopy(layer).float().cpu().eval()  # others' hooks, modes and dtypes stay
        for module in layer.modules():
            module._forward_pre_hooks.clear()
            module._forward_hooks.clear()
        features: Any = layer.get_submodule(found.names.out).out_features
        x = torch.randn(2, 5, features, generator=torch.Generator().manual_seed(0))
        want = layer_ref(layer, found.names, found.config.num_attention_heads, found.activation, x)
        got = layer(x)[0] if found.names.in_tuple else layer(x)
    except Exception as error:
        return f"cannot be tried: {error}"
    if not isinstance(got, Tensor) or got.shape != want.shape:
        return "returns something else than hidden states"
    if torch.allclose(got, want, atol=_TOLERANCE, equal_nan=True):
        return None
    return f"computes something else than a {type(layer).__name__} of its config does"
