"""Forward passes that replace those of a model, its encoder and its layers."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import suppress
from types import CodeType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.jit._trace import is_tracing
from transformers.modeling_outputs import (
    BaseModelOutput,
    BaseModelOutputWithPastAndCrossAttentions,
)

from ..architectures.layers import Architecture
from .bypassed import BypassedModules, hooked
from .find import SupportedEncoder
from .gpu.graphs import Graphs, Outputs
from .masks import UnsupportedCall
from .watch import PLAIN_ATTENTION, Watch


class Engine(Protocol):
    """Computation of an encoder's layers.

    watch: detects changes of the layers; `ModelForward` checks it before it replays a graph.
    """

    watch: Watch

    def __call__(
        self,
        x: Tensor,
        attention_mask: Tensor | None = None,
        layers: slice = slice(None),
        may_sync: bool = True,
    ) -> Tensor:
        """Output of `layers` for x (batch, length, features), in x's shape and dtype.

        attention_mask: a mask of transformers' attention, (batch or 1, 1, length or 1, length),
        bool or added to the scores; or (batch, length). None hides nothing.
        may_sync: allow a GPU sync, to read the mask's values.

        Raises UnsupportedCall on a call that the engine cannot compute and after a change that
        `watch` detected, ValueError on a mask of another size.
        """
        ...


class _Forward:
    """Replacement of a module's forward, with the original's signature and code object."""

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
    """Embeddings, encoder, and the final norm and pooler if any, without transformers in between.

    On one sentence, the Python code of transformers that is left out takes as long as a layer of a
    small model. A call for more than the last hidden state and the pooler's output gets the
    model's own forward.

    graphs: CUDA graphs that are replayed for some sizes, or None.
    """

    def __init__(
        self, model: nn.Module, architecture: Architecture, encoder: EncoderForward
    ) -> None:
        super().__init__(model)
        self.model, self.architecture, self.encoder = model, architecture, encoder
        self.graphs: Graphs | None = None
        self._bypassed = BypassedModules(list(model.modules())[1:])
        # the hooks of a model that is its own encoder are called by torch
        self._skipped = [] if encoder.module is model else [encoder.module]
        self._path = next(name for name, m in model.named_modules() if m is encoder.module)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        model: Any = self.model
        given = _by_name(self._names, args, kwargs)
        active = _active(given)
        input_ids = active.pop("input_ids", None)
        attention_mask = active.pop("attention_mask", None)
        embedded = {name: active.pop(name) for name in self.architecture.inputs if name in active}
        masked = isinstance(attention_mask, Tensor)
        if (
            active.keys() - {"return_dict"}
            or not given.get("return_dict", model.config.return_dict)
            or (input_ids is None) == ("inputs_embeds" not in embedded)
            or ("position_ids" in embedded and not _plain_attention(model.config))
            or (attention_mask is not None and not (masked and attention_mask.ndim == 2))
            or model.get_submodule(self._path) is not self.encoder.module
            or self.encoder.shows_layers(given)
            or hooked(self._skipped)
        ):
            return _own_forward(model, args, kwargs)
        outputs = None
        if self.graphs is not None and not embedded.keys() - {"token_type_ids"}:
            types = embedded.get("token_type_ids")
            outputs = self._replay(self.graphs, input_ids, attention_mask, types)
        if outputs is None:
            try:
                outputs = self.run(input_ids, attention_mask, **embedded)
            except UnsupportedCall:
                return _own_forward(model, args, kwargs)
        y, pooled = outputs
        pooler = {"pooler_output": pooled} if hasattr(model, "pooler") else {}
        return self.architecture.output(last_hidden_state=y, **pooler)

    def run(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None = None,
        may_sync: bool = True,
        **embedded: Tensor,
    ) -> Outputs:
        """Last hidden state and the pooler's output, or None without one.

        attention_mask: (batch, length). embedded: further arguments of the embeddings.
        """
        model: Any = self.model
        x = model.embeddings(input_ids=input_ids, **embedded)
        if hasattr(model, "embeddings_project"):
            x = model.embeddings_project(x)
        mask = None if attention_mask is None else attention_mask.bool()
        y = self.encoder.run(x, mask, may_sync)
        if hasattr(model, "final_norm"):
            y = model.final_norm(y)
        pooler = getattr(model, "pooler", None)
        return y, None if pooler is None else pooler(y)

    def _replay(
        self,
        graphs: Graphs,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        token_type_ids: Tensor | None,
    ) -> Outputs | None:
        """Outputs of a replayed graph, or None where no graph fits the call."""
        if (
            (token_type_ids is not None and token_type_ids.shape != input_ids.shape)
            or input_ids.device != graphs.device
            or torch.compiler.is_compiling()
            or is_tracing()
            or (input_ids.is_cuda and torch.cuda.is_current_stream_capturing())
            or torch.is_autocast_enabled(input_ids.device.type)
            or self._bypassed.hooked()
            or self.encoder.engine.watch.changed()
        ):
            return None
        self._bypassed.check_eval(self.model)
        return graphs(input_ids, attention_mask, token_type_ids)


class EncoderForward(_Forward):
    """Forward of an encoder: all layers in one call of the engine.

    A call that shows the layers' hidden states or attentions, or has an argument that the engine
    does not know other than None or False, gets the encoder's own forward.
    """

    def __init__(self, encoder: SupportedEncoder, engine: Engine) -> None:
        super().__init__(encoder.module)
        self.config, self.engine = encoder.config, engine
        self._bypassed = BypassedModules([m for layer in encoder.layers for m in layer.modules()])
        parameters = self.__signature__.parameters
        return_dict = parameters.get("return_dict")
        self._returns_dict = True if return_dict is None else return_dict.default
        caches = "past_key_values" in parameters
        self._output = BaseModelOutputWithPastAndCrossAttentions if caches else BaseModelOutput

    def shows_layers(self, arguments: dict[str, Any]) -> bool:
        """True if a call shows more of the layers than the last one's output."""
        return self._bypassed.hooked() or any(
            _requested(self.config, arguments, name)
            for name in ("output_hidden_states", "output_attentions")
        )

    def run(
        self, hidden_states: Tensor, attention_mask: Tensor | None, may_sync: bool = True
    ) -> Tensor:
        """Output of the last layer; see `Engine`. Raises RuntimeError in training mode."""
        self._bypassed.check_eval(self.module)
        return self.engine(hidden_states, attention_mask, may_sync=may_sync)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = _by_name(self._names, args, kwargs)
        active = _active(given)
        x, mask = active.pop("hidden_states", None), active.pop("attention_mask", None)
        if (
            isinstance(x, Tensor)
            and x.ndim == 3
            and _is_score_mask(mask, self.config)
            and not active.keys() - _ignored(self.config, "return_dict")
            and given.get("return_dict", self._returns_dict)
            and not self.shows_layers(given)
        ):
            with suppress(UnsupportedCall):
                y = self.run(x, mask)
                return self._output(last_hidden_state=y)
        self._bypassed.check_eval(self.module)
        # the encoder's own loop calls the layers' `LayerForward`
        return _own_forward(self.module, args, kwargs)


class LayerForward(_Forward):
    """Forward of one layer in a call of the engine, or by its submodules if one has a hook.

    Arguments that the engine does not know are treated as in `EncoderForward`; position information
    must be that of the encoder's own forward.
    """

    def __init__(self, encoder: SupportedEncoder, index: int, engine: Engine) -> None:
        super().__init__(encoder.layers[index])
        self.encoder, self.index, self.engine = encoder, index, engine
        self._bypassed = BypassedModules([m for m in self.module.modules() if m is not self.module])

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._bypassed.check_eval(self.module)
        config, names = self.encoder.config, self.encoder.names
        given = _by_name(self._names, args, kwargs)
        active = _active(given)
        x, mask = active.pop("hidden_states", None), active.pop("attention_mask", None)
        positions = active.pop(names.positions or "", None)
        if (
            isinstance(x, Tensor)
            and x.ndim == 3
            and _is_score_mask(mask, config)
            and not active.keys() - _ignored(config, "output_hidden_states")
            and not _requested(config, given, "output_attentions")
            and not self._bypassed.hooked()
            and self.encoder.has_default_positions(x, self.index, positions)
        ):
            with suppress(UnsupportedCall):
                y = self.engine(x, mask, slice(self.index, self.index + 1))
                return (y,) if names.returns_tuple else y
        return _own_forward(self.module, args, kwargs)


def _own_forward(module: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    # torch.compile would resolve a bound method to its replacement on the module
    return type(module).forward(module, *args, **kwargs)


def _by_name(names: Sequence[str], args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a call by name; "" holds all positional ones if there are too many or twice."""
    given = dict(zip(names, args, strict=False)) | kwargs
    return given if len(given) == len(args) + len(kwargs) else given | {"": args}


def _active(given: dict[str, Any]) -> dict[str, Any]:
    """Arguments that may change the result: neither None nor False."""
    return {name: value for name, value in given.items() if not (value is None or value is False)}


def _plain_attention(config: Any) -> bool:
    return getattr(config, "_attn_implementation", None) in (None, *PLAIN_ATTENTION)


def _ignored(config: Any, *names: str) -> set[str]:
    """Arguments of encoders and layers that never change the result."""
    return {*names, "position_ids"} if _plain_attention(config) else {*names}


def _is_score_mask(mask: Any, config: Any) -> bool:
    """True if a mask is None or 4-dimensional, in the form that the config's attention takes."""
    if mask is None or not _plain_attention(config):
        return True
    added = getattr(config, "_attn_implementation", None) != "sdpa"  # even where it is bool
    return isinstance(mask, Tensor) and mask.ndim == 4 and not (added and mask.dtype == torch.bool)


def _requested(config: Any, arguments: dict[str, Any], name: str) -> bool:
    """True if a call's argument or the config requests an output."""
    return bool(arguments.get(name) or getattr(config, name, False))
