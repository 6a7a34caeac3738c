"""Encoders of a model that the engines support, and the reference of their layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..architectures.layers import FIXED_ROPE_TYPES, LAYERS, MODELS, Architecture, LayerNames
from ..modules.compressed_linear import CompressedLinear
from ..modules.packed_linear import PackedLinear
from ..ops.reference import ACTIVATIONS
from .attention import PaddedAttention
from .bypassed import copied_module
from .record import FUSED

_TOLERANCE = 1e-4  # of outputs near 1, as a LayerNorm's; GELU's tanh form differs by 5e-4
FEATURES_MULTIPLE = 32  # the widest panel: queries, keys and values each fill whole panels

_LAYER_LISTS = ("layer", "layers", "albert_layer_groups")  # encoders' attributes in transformers

_ACTIVATION_ATTRIBUTES = ("hidden_act", "hidden_activation", "activation")  # of configs
_ACTIVATION_NAMES = {  # Hugging Face's name -> ours
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


@dataclass(frozen=True)
class SupportedEncoder:
    """Module that runs its `layers` one after the other, each as `layer_ref`.

    model: the model of `MODELS` that holds the module, or is it; None if there is none.
    """

    model: nn.Module | None
    module: nn.Module
    layers: list[nn.Module]
    names: LayerNames
    config: Any
    activation: str

    @property
    def architecture(self) -> Architecture:
        """Arguments and output class of `model`."""
        return MODELS[type(self.model).__name__]

    def modules(self) -> dict[str, nn.Module]:
        """Modules that an engine replaces in computation, by name, without those it added."""
        bias, rotary = self.names.position_bias, self.names.rotary
        positions = [*([bias.module] if bias else []), *([rotary] if rotary else [])]
        modules = {type(self.module).__name__: self.module}
        modules |= {name: self.module.get_submodule(name) for name in positions}
        for name, module in self.module.named_children():
            if isinstance(module, nn.ModuleList) and module[0] is self.layers[0]:
                inner = module.named_modules(prefix=name)
                modules |= {path: m for path, m in inner if f".{FUSED}" not in path}
        return modules

    def position_bias(self, length: int, device: torch.device) -> Tensor | None:
        """Relative position bias of the scores, (1, heads, length, length) fp32, or None."""
        bias = self.names.position_bias
        if bias is None:
            return None
        like = torch.empty(1, length, 0, dtype=torch.float32, device=device)
        return getattr(self.module, bias.method)(like)

    def attention_types(self) -> list[str]:
        """Attention type of each layer: "full_attention" or "sliding_attention"."""
        return [getattr(layer, "attention_type", "full_attention") for layer in self.layers]

    def rotary_cos_sin(
        self, attention_type: str, length: int, device: torch.device
    ) -> Tensor | None:
        """Rotary cos and sin (RoPE), (length, head) fp32, cosines first; None without RoPE."""
        if self.names.rotary is None:
            return None
        like = torch.empty(0, dtype=torch.float32, device=device)
        positions = torch.arange(length, device=device)[None]
        rotary = getattr(self.module, self.names.rotary)
        cos_and_sin = rotary(like, positions, attention_type)  # each has its half twice
        return torch.cat([t[0].chunk(2, -1)[0] for t in cos_and_sin], -1)

    def has_default_positions(self, x: Tensor, index: int, given: Any) -> bool:
        """True if a layer is given the position information that its encoder computes for x.

        x (batch, length, features); given: the layer's argument `names.positions`, a bias of the
        scores or rotary (cos, sin). False in torch.compile, where values are unknown.
        """
        if self.names.positions is None:
            return given is None
        if given is None or torch.compiler.is_compiling():
            return False
        bias, rotary = self.names.position_bias, self.names.rotary
        if bias is not None:
            given, expected = (given,), (getattr(self.module, bias.method)(x),)
        else:
            assert rotary is not None
            positions = torch.arange(x.shape[1], device=x.device)[None]
            attention_type = self.attention_types()[index]
            expected = getattr(self.module, rotary)(x, positions, attention_type)
        return all(map(torch.equal, given, expected))

    def window(self, attention_type: str) -> int | None:
        """Largest distance between a query and a visible key; None has no limit."""
        return self.config.sliding_window if attention_type == "sliding_attention" else None


def find_encoders(model: nn.Module) -> dict[str, SupportedEncoder | str]:
    """Encoders of `model` by name: supported ones, and for others the reason why they are not."""
    encoders: dict[str, SupportedEncoder | str] = {}
    for name, module in model.named_modules():
        for layers in (getattr(module, attribute, None) for attribute in _LAYER_LISTS):
            if isinstance(layers, nn.ModuleList) and len(layers):
                config = getattr(module, "config", getattr(model, "config", None))
                parent = model.get_submodule(name.rpartition(".")[0]) if name else None
                encoders[name] = _examine(parent, module, list(layers), config)
    return encoders


def layer_ref(
    encoder: SupportedEncoder, layer: nn.Module, x: Tensor, cos_sin: Tensor | None = None
) -> Tensor:
    """Reference of a layer in plain torch; x, y (batch, length, features).

    Post-norm: ``a = LN(x + attention_output(attention(x)))``, then
    ``y = LN(a + output(act(intermediate(a))))``.
    Pre-norm: ``a = x + attention_output(attention(LN(x)))``, then
    ``y = a + output(act(intermediate(LN(a))))``.
    """
    names = encoder.names

    def linear(name: str, x: Tensor) -> Tensor:
        return layer.get_submodule(name)(x)

    def norm(name: str | None, x: Tensor) -> Tensor:
        module: Any = nn.Identity() if name is None else layer.get_submodule(name)
        if isinstance(module, nn.Identity):
            return x
        return F.layer_norm(x, x.shape[-1:], module.weight, module.bias, module.eps)

    normed = norm(names.input_norm, x)
    q, k, v = torch.cat([linear(name, normed) for name in names.qkv], -1).chunk(3, -1)
    attended = PaddedAttention(encoder.config.num_attention_heads, None, cos_sin)(q, k, v)
    a = x + linear(names.attention_output, attended)
    normed = norm(names.attention_norm, a)
    hidden, act = linear(names.intermediate, normed), ACTIVATIONS[encoder.activation]
    if names.gated:
        hidden, gate = hidden.chunk(2, -1)
        hidden = act(hidden) * gate
    else:
        hidden = act(hidden)
    y = linear(names.output, hidden)
    return a + y if names.output_norm is None else norm(names.output_norm, normed + y)


def _examine(
    parent: nn.Module | None, module: nn.Module, layers: list[nn.Module], config: Any
) -> SupportedEncoder | str:
    kind = type(layers[0]).__name__
    if not _is_of_transformers(layers[0]):
        return f"layers of {kind} are not those of transformers"
    names = LAYERS.get(kind)
    if names is None:
        return f"layers of {kind} are not known; known are {', '.join(LAYERS)}"
    if not _is_of_transformers(module):
        return f"{type(module).__name__} is not that of transformers"
    activations = (getattr(config, name, None) for name in _ACTIVATION_ATTRIBUTES)
    activation = next(filter(None, activations), None)
    if activation not in _ACTIVATION_NAMES:
        return f"activation {activation!r} is not known; known are {', '.join(_ACTIVATION_NAMES)}"
    if getattr(config, "is_decoder", False) or getattr(config, "add_cross_attention", False):
        return "it is a decoder"
    if "forward" in vars(module):
        return "its forward was replaced"
    rotary = getattr(module, names.rotary or "", None)
    rope_types = set(getattr(rotary, "rope_type", {}).values())
    if not rope_types <= {*FIXED_ROPE_TYPES}:
        return f"positions of kinds {sorted(rope_types)} are not known"
    model = next((m for m in (module, parent) if type(m).__name__ in MODELS), None)
    model = model if _is_of_transformers(model) else None
    encoder = SupportedEncoder(model, module, layers, names, config, _ACTIVATION_NAMES[activation])
    if reason := _no_position_bias(encoder):
        return reason
    attention_types = encoder.attention_types()
    for i, (layer, attention_type) in enumerate(zip(layers, attention_types, strict=True)):
        reason = (
            f"is a {type(layer).__name__}"
            if type(layer) is not type(layers[0])
            else _unfit(layer, names) or _different(layer, attention_type, encoder)
        )
        if reason is not None:
            return f"layer {i} {reason}"
    return encoder


@torch.no_grad()
def _no_position_bias(encoder: SupportedEncoder) -> str | None:
    """Reason why the relative position bias of the longest sequence cannot be computed."""
    if encoder.names.position_bias is None:
        return None
    positions = getattr(encoder.config, "max_position_embeddings", 0)
    try:
        encoder.position_bias(positions, next(encoder.module.parameters()).device)
    except Exception as error:
        return f"biases of its {positions} positions cannot be had: {error}"
    return None


def _is_of_transformers(module: Any) -> bool:
    """True if the module's class, and the forward it has now, are defined in transformers."""
    kind = type(module)
    where = getattr(getattr(kind, "forward", None), "__globals__", {}).get("__name__", "")
    return kind.__module__.startswith("transformers.models.") and where.startswith("transformers.")


def _unfit(layer: nn.Module, names: LayerNames) -> str | None:
    """Reason why a layer's submodules are not those of its class, or of unsupported sizes."""
    modules = dict(layer.named_modules())
    for name in (*names.linears, *names.norms):
        if name not in modules:
            return f"has no {name}"
    for linear in (modules[name] for name in names.linears):
        if type(linear) not in (nn.Linear, PackedLinear) and not isinstance(
            linear, CompressedLinear
        ):
            return f"has a {type(linear).__name__}"
        if getattr(linear, "activation", "none") != "none":
            return "has a linear with an activation"
    features: Any = modules[names.attention_output].out_features
    hidden: Any = modules[names.output].in_features
    if features % FEATURES_MULTIPLE or (names.gated and hidden % FEATURES_MULTIPLE):
        return f"has features that are no multiple of {FEATURES_MULTIPLE}"
    for name in names.norms:
        norm = modules[name]
        if name == names.input_norm and isinstance(norm, nn.Identity):
            continue
        if not isinstance(norm, nn.LayerNorm):
            return f"has a {type(norm).__name__}"
        if norm.weight is None or (norm.bias is None and names.output_norm is not None):
            return "has a LayerNorm without weight or bias"
    for name, module in modules.items():
        if "forward" in vars(module):
            return f"has another forward in {name or 'itself'}"
    return None


@torch.no_grad()
def _different(layer: nn.Module, attention_type: str, encoder: SupportedEncoder) -> str | None:
    """Reason why a layer's output on random tokens differs from `layer_ref`, if it does."""
    try:
        # the caller's hooks, mode and dtype stay
        layer = copied_module(layer, with_hooks=False).float().cpu().eval()
        features: Any = layer.get_submodule(encoder.names.attention_output).out_features
        seed = torch.Generator().manual_seed(0)
        x = torch.randn(2, 5, features, generator=seed, dtype=torch.float32, device="cpu")
        cos_sin, positions = encoder.rotary_cos_sin(attention_type, x.shape[1], x.device), {}
        want = layer_ref(encoder, layer, x, cos_sin)
        if cos_sin is not None:
            cos_and_sin = (half.repeat(1, 2)[None] for half in cos_sin.chunk(2, 1))
            positions = {"position_embeddings": tuple(cos_and_sin)}
        got = layer(x, **positions)
        got = got[0] if encoder.names.returns_tuple else got
    except Exception as error:
        return f"cannot be tried: {error}"
    if not isinstance(got, Tensor) or got.shape != want.shape:
        return "returns something else than hidden states"
    if torch.allclose(got, want, atol=_TOLERANCE, equal_nan=True):
        return None
    return f"computes something else than a {type(layer).__name__} of its config does"
