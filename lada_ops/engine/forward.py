"""The forward passes that take the place of a model's own, its encoder's and its layers'."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.modeling_outputs import (
    BaseModelOutputWithPastAndCrossAttentions,
    BaseModelOutputWithPoolingAndCrossAttentions,
)

from .masks import NotPadding

if TYPE_CHECKING:
    from .graphs import Graphs


class Engine(Protocol):
    """What computes the layers of an encoder."""

    def __call__(
        self,
        x: Tensor,
        attention_mask: Tensor | None = None,
        layers: slice = slice(None),
        may_wait: bool = True,
    ) -> Tensor:
        """The output (batch, length, features) of `layers`, in x's dtype.

        attention_mask: what transformers makes of a padding mask, (batch or 1, 1, length or 1,
        length), bool or added to the scores; or (batch, length). None hides nothing.
        may_wait: whether it may look at the mask's values, for which it waits for a GPU.

        Raises NotPadding on a mask that the engine cannot follow, ValueError on one that does not
        fit.
        """
        ...


class ModelForward:
    """Embeddings, the encoder and the pooler, with nothing in between.

    What transformers does between them takes as long as a layer of a small model on one sentence.
    Calls that ask for anything else than the last hidden state get its own forward.

    graphs: what replays it for some sizes, if anything.
    """

    def __init__(self, model: nn.Module, encoder: EncoderForward) -> None:
        self.model, self.encoder = model, encoder
        self.graphs: Graphs | None = None
        self._inside = _Inside(list(model.modules())[1:])

    def __call__(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        *args: Any,
        **others: Any,
    ) -> Any:
        model: Any = self.model
        asked = {name for name, value in others.items() if not (value is None or value is False)}
        masked = isinstance(attention_mask, Tensor)
        if (
            args
            or asked - {"return_dict"}
            or not others.get("return_dict", model.config.return_dict)
            or (input_ids is None) == (inputs_embeds is None)
            or (attention_mask is not None and not (masked and attention_mask.ndim == 2))
            or self.encoder.looked_at(others)
            or _hooked([self.encoder.module])
        ):
            given = input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds
            return _own_forward(model)(*given, *args, **others)
        outputs = None
        if self.graphs is not None and input_ids is not None and position_ids is None:
            outputs = self._replayed(self.graphs, input_ids, attention_mask, token_type_ids)
        if outputs is None:
            given = input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds
            outputs = self.run(*given)
        y, pooled = outputs
        return BaseModelOutputWithPoolingAndCrossAttentions(
            last_hidden_state=y, pooler_output=pooled
        )

    def run(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        may_wait: bool = True,
    ) -> tuple[Tensor | None, ...]:
        """The last layer's output and the pooler's; attention_mask (batch, length)."""
        model: Any = self.model
        x = model.embeddings(
            input_ids=input_ids,
            position_ids=position_ids,
            token_type_ids=token_type_ids,
            inputs_embeds=inputs_embeds,
        )
        mask = None if attention_mask is None else attention_mask.bool()
        y = self.encoder.run(x, mask, may_wait)
        return y, None if model.pooler is None else model.pooler(y)

    def _replayed(
        self,
        graphs: Graphs,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        token_type_ids: Tensor | None,
    ) -> tuple[Tensor | None, ...] | None:
        """What a graph gives, or None where none was recorded for such a call."""
        alike = token_type_ids is None or token_type_ids.shape == input_ids.shape
        if (
            not alike
            or input_ids.device != graphs.device
            or torch.compiler.is_compiling()
            or (input_ids.is_cuda and torch.cuda.is_current_stream_capturing())
            or torch.is_autocast_enabled(input_ids.device.type)
            or self._inside.hooked()
        ):
            return None
        self._inside.check_eval(self.model)
        return graphs(input_ids, attention_mask, token_type_ids)


class EncoderForward:
    """All layers in one call of the engine; in one each where hidden states are looked at."""

    def __init__(
        self, module: nn.Module, config: Any, layers: Sequence[nn.Module], engine: Engine
    ) -> None:
        self.module, self.config, self.engine = module, config, engine
        self._inside = _Inside([inner for layer in layers for inner in layer.modules()])

    def looked_at(self, arguments: dict[str, Any]) -> bool:
        """Whether a call wants to see more of the layers than the last one's output."""
        asked = ("hidden_states", "attentions")
        return self._inside.hooked() or any(
            _asked(self.config, arguments, f"output_{what}") for what in asked
        )

    def run(
        self, hidden_states: Tensor, attention_mask: Tensor | None, may_wait: bool = True
    ) -> Tensor:
        """The last layer's output; see `Engine`. Raises RuntimeError in training mode."""
        self._inside.check_eval(self.module)
        return self.engine(hidden_states, attention_mask, may_wait=may_wait)

    def __call__(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **others: Any):
        if not self.looked_at(others):
            try:
                y = self.run(hidden_states, attention_mask)
                return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=y)
            except NotPadding:
                pass
        self._inside.check_eval(self.module)
        # its own loop over the layers, which are the engine's too
        return _own_forward(self.module)(hidden_states, attention_mask, **others)


class LayerForward:
    """One layer in a call of the engine, or by its submodules where those are looked at."""

    def __init__(
        self, layer: nn.Module, config: Any, engine: Engine, index: int, in_tuple: bool
    ) -> None:
        self.layer, self.config, self.in_tuple = layer, config, in_tuple
        self.engine, self.index = engine, index
        self._inside = _Inside([inner for inner in layer.modules() if inner is not layer])

    def __call__(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, *args: Any, **others: Any
    ):
        self._inside.check_eval(self.layer)
        if not (_asked(self.config, others, "output_attentions") or self._inside.hooked()):
            one = slice(self.index, self.index + 1)
            try:
                y = self.engine(hidden_states, attention_mask, one)
                return (y,) if self.in_tuple else y
            except NotPadding:
                pass
        return _own_forward(self.layer)(hidden_states, attention_mask, *args, **others)


class _Inside:
    """Modules that the engine leaves out. Asking them all anew would cost what a layer does."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._modules = list(modules)
        # the only ones for which training makes a difference; `train` of any other reaches them
        self._dropouts = [module for module in modules if isinstance(module, nn.Dropout)]
        self._hooked, self._hooks_ever = False, -1

    def check_eval(self, whole: nn.Module) -> None:
        """Raises RuntimeError where `whole` or a part of it is in training mode."""
        if whole.training or any(dropout.training for dropout in self._dropouts):
            # dropout would be left out in silence
            raise RuntimeError(
                f"{type(whole).__name__}: in training mode; expected model.eval(), since the model "
                "was optimized for inference"
            )

    def hooked(self) -> bool:
        """Whether someone waits for one of them to be called; see `_hooked`."""
        ever = RemovableHandle.next_id  # counts the hooks of all modules that there ever were
        if self._hooked or self._hooks_ever != ever:
            self._hooked, self._hooks_ever = _hooked(self._modules), ever
        return self._hooked

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_hooks_ever": -1}  # another process has counted others


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
