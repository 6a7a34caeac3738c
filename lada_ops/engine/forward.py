"""The forward passes that take the place of a model's own, its encoder's and its layers'."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import suppress
from types import CodeType
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.jit._trace import is_tracing
from transformers.modeling_outputs import (
    BaseModelOutput,
    BaseModelOutputWithPastAndCrossAttentions,
)

from ..architectures.layers import ModelKind
from .find import FoundEncoder
from .inside import Inside, hooked
from .masks import NotForEngine
from .watch import PLAIN_ATTENTION, Watch

if TYPE_CHECKING:
    from .gpu.graphs import Graphs


class Engine(Protocol):
    """Computation of the layers of an encoder.

    watch: notice of changes in them, for callers that do not call the engine.
    """

    watch: Watch

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

        Raises NotForEngine on what the engine cannot compute and after a change that `watch` has
        noticed, ValueError on a mask that does not fit.
        """
        ...


class _Forward:
    """Forward in the place of a module's own, whose signature and code others look up."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._names = [*self.__signature__.parameters]

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(type(self.module).forward.__get__(self.module))

    @property
    def __code__(self) -> CodeType:
        return type(self.module).forward.__code__


class ModelForward(_Forward):
    """Embeddings, the encoder and what comes after, with nothing in between.

    What transformers does between them takes as long as a layer of a small model on one sentence.
    Calls that ask for anything else than the last hidden state get its own forward.

    graphs: what replays it for some sizes, if anything.
    """

    def __init__(self, model: nn.Module, kind: ModelKind, encoder: EncoderForward) -> None:
        super().__init__(model)
        self.model, self.kind, self.encoder = model, kind, encoder
        self.graphs: Graphs | None = None
        self._inside = Inside(list(model.modules())[1:])
        # hooks of a model that is its own encoder run in any case
        self._left_out = [] if encoder.module is model else [encoder.module]
        self._path = next(name for name, m in model.named_modules() if m is encoder.module)

    def __call__(self, *args: Any, **others: Any) -> Any:
        model: Any = self.model
        given = _by_name(self._names, args, others)
        asked = _asked(given)
        input_ids, attention_mask = asked.pop("input_ids", None), asked.pop("attention_mask", None)
        embedded = {name: asked.pop(name) for name in self.kind.inputs if name in asked}
        masked = isinstance(attention_mask, Tensor)
        if (
            asked.keys() - {"return_dict"}
            or not given.get("return_dict", model.config.return_dict)
            or (input_ids is None) == ("inputs_embeds" not in embedded)
            or ("position_ids" in embedded and not _plain_attention(model.config))
            or (attention_mask is not None and not (masked and attention_mask.ndim == 2))
            or model.get_submodule(self._path) is not self.encoder.module
            or self.encoder.looked_at(given)
            or hooked(self._left_out)
        ):
            return _own_forward(model, args, others)
        outputs = None
        if self.graphs is not None and not embedded.keys() - {"token_type_ids"}:
            types = embedded.get("token_type_ids")
            outputs = self._replayed(self.graphs, input_ids, attention_mask, types)
        if outputs is None:
            try:
                outputs = self.run(input_ids, attention_mask, **embedded)
            except NotForEngine:
                return _own_forward(model, args, others)
        y, pooled = outputs
        pooler = {"pooler_output": pooled} if hasattr(model, "pooler") else {}
        return self.kind.output(last_hidden_state=y, **pooler)

    def run(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None = None,
        may_wait: bool = True,
        **embedded: Tensor,
    ) -> tuple[Tensor | None, ...]:
        """The last hidden state and the pooler's; attention_mask (batch, length).

        embedded: what of its kind's inputs the embeddings are to take beside ids.
        """
        model: Any = self.model
        x = model.embeddings(input_ids=input_ids, **embedded)
        if hasattr(model, "embeddings_project"):
            x = model.embeddings_project(x)
        mask = None if attention_mask is None else attention_mask.bool()
        y = self.encoder.run(x, mask, may_wait)
        if hasattr(model, "final_norm"):
            y = model.final_norm(y)
        pooler = getattr(model, "pooler", None)
        return y, None if pooler is None else pooler(y)

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
            or is_tracing()
            or (input_ids.is_cuda and torch.cuda.is_current_stream_capturing())
            or torch.is_autocast_enabled(input_ids.device.type)
            or self._inside.hooked()
            or self.encoder.engine.watch.changed()
        ):
            return None
        self._inside.check_eval(self.model)
        return graphs(input_ids, attention_mask, token_type_ids)


class EncoderForward(_Forward):
    """All layers in one call of the engine; in one each where hidden states are looked at.

    Calls with an argument that the engine does not know, other than None or False, get the
    encoder's own forward.
    """

    def __init__(self, found: FoundEncoder, engine: Engine) -> None:
        super().__init__(found.module)
        self.config, self.engine = found.config, engine
        self._inside = Inside([inner for layer in found.layers for inner in layer.modules()])
        parameters = self.__signature__.parameters
        asked = parameters.get("return_dict")
        self._returns_dict = True if asked is None else asked.default
        caches = "past_key_values" in parameters
        self._output = BaseModelOutputWithPastAndCrossAttentions if caches else BaseModelOutput

    def looked_at(self, arguments: dict[str, Any]) -> bool:
        """Whether a call wants to see more of the layers than the last one's output."""
        asked = ("hidden_states", "attentions")
        return self._inside.hooked() or any(
            _wanted(self.config, arguments, f"output_{what}") for what in asked
        )

    def run(
        self, hidden_states: Tensor, attention_mask: Tensor | None, may_wait: bool = True
    ) -> Tensor:
        """The last layer's output; see `Engine`. Raises RuntimeError in training mode."""
        self._inside.check_eval(self.module)
        return self.engine(hidden_states, attention_mask, may_wait=may_wait)

    def __call__(self, *args: Any, **others: Any) -> Any:
        given = _by_name(self._names, args, others)
        asked = _asked(given)
        x, mask = asked.pop("hidden_states", None), asked.pop("attention_mask", None)
        if (
            isinstance(x, Tensor)
            and x.ndim == 3
            and _score_mask(mask, self.config)
            and not asked.keys() - _harmless(self.config, "return_dict")
            and given.get("return_dict", self._returns_dict)
            and not self.looked_at(given)
        ):
            with suppress(NotForEngine):
                y = self.run(x, mask)
                return self._output(last_hidden_state=y)
        self._inside.check_eval(self.module)
        # its own loop over the layers, which are the engine's too
        return _own_forward(self.module, args, others)


class LayerForward(_Forward):
    """One layer in a call of the engine, or by its submodules where those are looked at.

    Arguments that the engine does not know are as for `EncoderForward`; those about positions must
    be what the encoder's own forward makes of them.
    """

    def __init__(self, found: FoundEncoder, index: int, engine: Engine) -> None:
        super().__init__(found.layers[index])
        self.found, self.index, self.engine = found, index, engine
        self._inside = Inside([m for m in self.module.modules() if m is not self.module])

    def __call__(self, *args: Any, **others: Any) -> Any:
        self._inside.check_eval(self.module)
        config, names = self.found.config, self.found.names
        given = _by_name(self._names, args, others)
        asked = _asked(given)
        x, mask = asked.pop("hidden_states", None), asked.pop("attention_mask", None)
        positions = asked.pop(names.positions or "", None)
        if (
            isinstance(x, Tensor)
            and x.ndim == 3
            and _score_mask(mask, config)
            and not asked.keys() - _harmless(config, "output_hidden_states")
            and not _wanted(config, given, "output_attentions")
            and not self._inside.hooked()
            and self.found.has_positions(x, self.index, positions)
        ):
            with suppress(NotForEngine):
                y = self.engine(x, mask, slice(self.index, self.index + 1))
                return (y,) if names.in_tuple else y
        return _own_forward(self.module, args, others)


def _own_forward(module: nn.Module, args: Sequence[Any], others: dict[str, Any]) -> Any:
    # called as a bound method, torch.compile would find the one that took its place
    return type(module).forward(module, *args, **others)


def _by_name(names: Sequence[str], args: Sequence[Any], others: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a call by name; under "" those that are too many or given twice."""
    given = dict(zip(names, args, strict=False)) | others
    return given if len(given) == len(args) + len(others) else given | {"": args}


def _asked(given: dict[str, Any]) -> dict[str, Any]:
    """Arguments that may change what a call computes."""
    return {name: value for name, value in given.items() if not (value is None or value is False)}


def _plain_attention(config: Any) -> bool:
    return getattr(config, "_attn_implementation", None) in (None, *PLAIN_ATTENTION)


def _harmless(config: Any, *names: str) -> set[str]:
    """Arguments of encoders and layers that make no difference, whatever their value."""
    return {*names, "position_ids"} if _plain_attention(config) else {*names}


def _score_mask(mask: Any, config: Any) -> bool:
    """Whether a mask is in the form of the scores that the config's attention takes."""
    if mask is None or not _plain_attention(config):
        return True
    added = getattr(config, "_attn_implementation", None) != "sdpa"  # even where it is bool
    return isinstance(mask, Tensor) and mask.ndim == 4 and not (added and mask.dtype == torch.bool)


def _wanted(config: Any, arguments: dict[str, Any], name: str) -> bool:
    return bool(arguments.get(name) or getattr(config, name, False))
