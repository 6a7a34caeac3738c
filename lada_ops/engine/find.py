"""Which encoders of a model the engines can run whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..architectures.layers import (
    BIASED,
    FIXED_ROTATIONS,
    LAYERS,
    MODELS,
    ROTATED,
    LayerNames,
    ModelKind,
)
from ..modules.compressed_linear import CompressedLinear
from ..modules.packed_linear import PackedLinear
from ..ops.reference import ACTIVATIONS
from .attention import Padded
from .inside import copied_module
from .record import FUSED

_TOLERANCE = 1e-4  # of outputs near 1: those of a LayerNorm; tanh for erf in GELU is 5e-4 off
MAX_STRIPE = 32  # queries, keys and values fill whole stripes of columns

_LISTS = ("layer", "layers", "albert_layer_groups")  # where transformers keeps an encoder's layers

_ACTIVATION_ATTRIBUTES = ("hidden_act", "hidden_activation", "activation")  # of configs
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
    """A module that runs its `layers` one after the other, which the engines can do.

    model: the one of `MODELS` that it is in, or that it is itself; None if there is none.
    """

    model: nn.Module | None
    module: nn.Module
    layers: list[nn.Module]
    names: LayerNames
    config: Any
    activation: str

    @property
    def kind(self) -> ModelKind:
        """Of `model`."""
        return MODELS[type(self.model).__name__]

    def parts(self) -> dict[str, nn.Module]:
        """Modules that an engine computes for, by name, those of fused layers left out."""
        layer, ours = type(self.layers[0]).__name__, f".{FUSED}"
        positions = *BIASED.get(layer, ())[:1], *filter(None, [ROTATED.get(layer)])
        inside = [type(self.module).__name__, *positions]
        found = dict(zip(inside, map(self.module.get_submodule, ("", *positions)), strict=True))
        for name, module in self.module.named_children():
            if isinstance(module, nn.ModuleList) and module[0] is self.layers[0]:
                within = module.named_modules(prefix=name)
                found |= {inner: m for inner, m in within if ours not in inner}
        return found

    def position_bias(self, length: int, device: torch.device) -> Tensor | None:
        """What is added to the scores of one sequence, (1, heads, length, length), if anything."""
        _, method = BIASED.get(type(self.layers[0]).__name__, ("", None))
        if method is None:
            return None
        like = torch.empty(1, length, 0, dtype=torch.float32, device=device)
        return getattr(self.module, method)(like)

    def attention_types(self) -> list[str]:
        """Of each layer, as its config calls them."""
        return [getattr(layer, "attention_type", "full_attention") for layer in self.layers]

    def angles(self, attention_type: str, length: int, device: torch.device) -> Tensor | None:
        """What queries and keys are turned by: (length, features of a head), cosines, then sines.

        In fp32; None turns nothing.
        """
        module = ROTATED.get(type(self.layers[0]).__name__)
        if module is None:
            return None
        like = torch.empty(0, dtype=torch.float32, device=device)
        at = torch.arange(length, device=device)[None]
        turned = getattr(self.module, module)(like, at, attention_type)
        return torch.cat([both[0].chunk(2, -1)[0] for both in turned], -1)

    def has_positions(self, x: Tensor, index: int, given: Any) -> bool:
        """Whether a layer is told of positions what its encoder tells it of x's, if anything.

        x (batch, length, features); given: a bias for the scores, or cosines and sines. Compiled
        code does not wait to see their values: there they are what is not known.
        """
        if self.names.positions is None:
            return given is None
        if given is None or torch.compiler.is_compiling():
            return False
        kind = type(self.layers[index]).__name__
        if kind in BIASED:
            given, want = (given,), (getattr(self.module, BIASED[kind][1])(x),)
        else:
            at = torch.arange(x.shape[1], device=x.device)[None]
            want = getattr(self.module, ROTATED[kind])(x, at, self.attention_types()[index])
        return all(map(torch.equal, given, want))

    def window(self, attention_type: str) -> int | None:
        """How far from a query the keys are that it sees; None is any."""
        return self.config.sliding_window if attention_type == "sliding_attention" else None


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
    found: FoundEncoder, layer: nn.Module, x: Tensor, angles: Tensor | None = None
) -> Tensor:
    """What the engines compute of a layer, in plain torch; x, y (batch, length, features).

    ``a = LN(x + out(attention(x))); y = LN(a + down(act(up(a))))``, or, where norms come first,
    ``a = x + out(attention(LN(x))); y = a + down(act(up(LN(a))))``.
    """
    names = found.names

    def linear(name: str, x: Tensor) -> Tensor:
        return layer.get_submodule(name)(x)

    def norm(name: str | None, x: Tensor) -> Tensor:
        module: Any = nn.Identity() if name is None else layer.get_submodule(name)
        if isinstance(module, nn.Identity):
            return x
        return F.layer_norm(x, x.shape[-1:], module.weight, module.bias, module.eps)

    normed, after = norm(names.input_norm, x), names.attention_norm
    q, k, v = torch.cat([linear(name, normed) for name in names.qkv], -1).chunk(3, -1)
    attended = Padded(found.config.num_attention_heads, None, angles)(q, k, v)
    a = x + linear(names.out, attended)
    between = norm(after, a)
    up, act = linear(names.up, between), ACTIVATIONS[found.activation]
    if names.gated:
        first, second = up.chunk(2, -1)
        hidden = act(first) * second
    else:
        hidden = act(up)
    down = linear(names.down, hidden)
    return a + down if names.output_norm is None else norm(names.output_norm, between + down)


def _examined(
    around: nn.Module | None, module: nn.Module, layers: list[nn.Module], config: Any
) -> FoundEncoder | str:
    kind = type(layers[0]).__name__
    if not _is_of_transformers(layers[0]):
        return f"layers of {kind} are not those of transformers"
    names = LAYERS.get(kind)
    if names is None:
        return f"layers of {kind} are not known; known are {', '.join(LAYERS)}"
    if not _is_of_transformers(module):
        return f"{type(module).__name__} is not that of transformers"
    every = (getattr(config, name, None) for name in _ACTIVATION_ATTRIBUTES)
    activation = next(filter(None, every), None)
    if activation not in _ACTIVATION_NAMES:
        return f"activation {activation!r} is not known; known are {', '.join(_ACTIVATION_NAMES)}"
    if getattr(config, "is_decoder", False) or getattr(config, "add_cross_attention", False):
        return "it is a decoder"
    if "forward" in vars(module):
        return "its forward was replaced"
    rotations = set(getattr(getattr(module, ROTATED.get(kind, ""), None), "rope_type", {}).values())
    if not rotations <= {*FIXED_ROTATIONS}:
        return f"positions of kinds {sorted(rotations)} are not known"
    if kind in BIASED and (reason := _unbiased(module, BIASED[kind][1], config)):
        return reason
    known = next((m for m in (module, around) if type(m).__name__ in MODELS), None)
    known = known if _is_of_transformers(known) else None
    found = FoundEncoder(known, module, layers, names, config, _ACTIVATION_NAMES[activation])
    for i, (layer, attention_type) in enumerate(zip(layers, found.attention_types(), strict=True)):
        reason = (
            f"is a {type(layer).__name__}"
            if type(layer) is not type(layers[0])
            else _unfit(layer, names) or _different(layer, attention_type, found)
        )
        if reason is not None:
            return f"layer {i} {reason}"
    return found


@torch.no_grad()
def _unbiased(module: nn.Module, method: str, config: Any) -> str | None:
    """Why the biases of all positions of a model cannot be had."""
    positions = getattr(config, "max_position_embeddings", 0)
    try:
        getattr(module, method)(next(module.parameters()).new_empty(1, positions, 0))
    except Exception as error:
        return f"biases of its {positions} positions cannot be had: {error}"
    return None


def _is_of_transformers(module: Any) -> bool:
    """Whether its class is, and the forward that this has now."""
    kind = type(module)
    where = getattr(getattr(kind, "forward", None), "__globals__", {}).get("__name__", "")
    return kind.__module__.startswith("transformers.models.") and where.startswith("transformers.")


def _unfit(layer: nn.Module, names: LayerNames) -> str | None:
    within = dict(layer.named_modules())
    for name in (*names.linears, *names.norms):
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
    hidden: Any = within[names.down].in_features
    if features % MAX_STRIPE or (names.gated and hidden % MAX_STRIPE):
        return f"has features that are no multiple of {MAX_STRIPE}"
    for name in names.norms:
        norm = within[name]
        if name == names.input_norm and isinstance(norm, nn.Identity):
            continue
        if not isinstance(norm, nn.LayerNorm):
            return f"has a {type(norm).__name__}"
        if norm.weight is None or (norm.bias is None and names.output_norm is not None):
            return "has a LayerNorm without weight or bias"
    for name, module in within.items():
        if "forward" in vars(module):
            return f"has another forward in {name or 'itself'}"
    return None


@torch.no_grad()
def _different(layer: nn.Module, attention_type: str, found: FoundEncoder) -> str | None:
    """Why a layer, on a few tokens, computes something else than its class and config say."""
    try:
        # others' hooks, modes and dtypes stay
        layer = copied_module(layer, with_hooks=False).float().cpu().eval()
        features: Any = layer.get_submodule(found.names.out).out_features
        seed = torch.Generator().manual_seed(0)
        x = torch.randn(2, 5, features, generator=seed, dtype=torch.float32, device="cpu")
        angles, positions = found.angles(attention_type, x.shape[1], x.device), {}
        want = layer_ref(found, layer, x, angles)
        if angles is not None:
            both = (half.repeat(1, 2)[None] for half in angles.chunk(2, 1))
            positions = {"position_embeddings": tuple(both)}
        got = layer(x, **positions)
        got = got[0] if found.names.in_tuple else got
    except Exception as error:
        return f"cannot be tried: {error}"
    if not isinstance(got, Tensor) or got.shape != want.shape:
        return "returns something else than hidden states"
    if torch.allclose(got, want, atol=_TOLERANCE, equal_nan=True):
        return None
    return f"computes something else than a {type(layer).__name__} of its config does"
