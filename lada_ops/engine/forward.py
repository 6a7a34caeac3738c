"""The forward passes that take the place of an encoder's own, and of its layers'."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from ..modules.packed_linear import check_inference

if TYPE_CHECKING:
    from lada_kernels.cpu.encoder import PackedEncoder

_MASKED = -1e4  # what a mask adds to scores is 0, or this and less


class EncoderForward:
    """All layers in one native call, or in one for each where hidden states are looked at.

    Positions that the mask hides are not computed; they come out as 0.
    """

    def __init__(
        self, module: nn.Module, config: Any, layers: Sequence[nn.Module], encoder: PackedEncoder
    ) -> None:
        self.module, self.config, self.encoder = module, config, encoder
        self._within = [inner for layer in layers for inner in layer.modules()]

    def __call__(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **others: Any):
        _check_mode(self.module, self._within)
        looked_at = any(
            _asked(self.config, others, f"output_{what}")
            for what in ("hidden_states", "attentions")
        )
        if looked_at or _hooked(self._within):
            # its own loop over the layers, which are native too
            return _own_forward(self.module)(hidden_states, attention_mask, **others)
        y = encode(self.encoder, hidden_states, attention_mask)
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=y)


class LayerForward:
    """One layer in a native call, or by its submodules where those are looked at."""

    def __init__(self, layer: nn.Module, config: Any, encoder: PackedEncoder, index: int) -> None:
        self.layer, self.config = layer, config
        self.encoder, self.index = encoder, index
        self._within = [inner for inner in layer.modules() if inner is not layer]

    def __call__(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, *args: Any, **others: Any
    ):
        _check_mode(self.layer, self._within)
        if _asked(self.config, others, "output_attentions") or _hooked(self._within):
            return _own_forward(self.layer)(hidden_states, attention_mask, *args, **others)
        one = slice(self.index, self.index + 1)
        return encode(self.encoder, hidden_states, attention_mask, one)


@torch.compiler.disable(recursive=True)
def encode(
    encoder: PackedEncoder,
    x: Tensor,
    attention_mask: Tensor | None = None,
    layers: slice = slice(None),
) -> Tensor:
    """The output (batch, length, features) of `layers`, in x's dtype.

    attention_mask: what transformers makes of a padding mask, (batch or 1, 1, length or 1, length),
    bool or added to the scores; or (batch, length). None hides nothing.

    Raises ValueError on a mask that hides other positions from one query than from another,
    TypeError on one that is no tensor, and where `check_inference` does.
    """
    check_inference("encoder", x, encoder.features)
    if not isinstance(attention_mask, Tensor | None):
        raise TypeError(
            f"encoder: attention_mask is a {type(attention_mask).__name__}; expected a tensor, as "
            "attn_implementation='sdpa' gives"
        )
    batch, length, features = x.shape
    visible = None if attention_mask is None else visible_positions(attention_mask, batch, length)
    rows = x.detach().reshape(batch * length, features)
    if visible is None or bool(visible.all()):
        starts = torch.arange(batch + 1) * length
        y = encoder.run_(rows.to(encoder.io_dtype, copy=True), starts, layers)
        return y.to(x.dtype).view(batch, length, features)
    index = visible.flatten().nonzero()[:, 0]
    starts = nn.functional.pad(visible.sum(1).cumsum(0), (1, 0))
    y = encoder.run_(rows[index].to(encoder.io_dtype), starts, layers)
    return x.new_zeros(rows.shape).index_copy_(0, index, y.to(x.dtype)).view(x.shape)


def visible_positions(mask: Tensor, batch: int, length: int) -> Tensor:
    """Which positions a mask lets all others see, (batch, length) bool; see `encode`."""
    whole = mask.bool() if not mask.is_floating_point() else mask > _MASKED
    if mask.ndim == 4 and mask.shape[1] == 1 and mask.shape[2] in (1, length):
        first = whole[:, 0, :1]
        if not torch.equal(whole[:, 0], first.expand_as(whole[:, 0])):
            raise ValueError(
                "encoder: attention_mask differs from query to query; expected one that hides "
                "padding alone"
            )
        whole = first[:, 0]
    if whole.ndim != 2 or whole.shape[0] not in (1, batch) or whole.shape[1] != length:
        raise ValueError(
            f"encoder: attention_mask {tuple(mask.shape)}; expected ({batch}, 1, {length}, "
            f"{length}) or ({batch}, {length})"
        )
    return whole.expand(batch, length)


def _check_mode(module: nn.Module, within: Sequence[nn.Module]) -> None:
    if module.training or any(inner.training for inner in within):
        # dropout would be left out in silence
        raise RuntimeError(
            f"{type(module).__name__}: in training mode; expected model.eval(), since the model "
            "was optimized for inference"
        )


def _own_forward(module: nn.Module) -> Callable[..., Any]:
    return type(module).forward.__get__(module)


def _asked(config: Any, arguments: dict[str, Any], name: str) -> bool:
    return bool(arguments.get(name) or getattr(config, name, False))


def _hooked(modules: Sequence[nn.Module]) -> bool:
    """Whether someone waits for a module to be called, other than transformers for its outputs."""
    for module in modules:
        if module._forward_pre_hooks or module._forward_hooks:
            hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
            if any(hook.__module__ != "transformers.utils.output_capturing" for hook in hooks):
                return True
    return False
