"""What `optimize` did to a model: kept on it, to be told and to be undone."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from ..modules.packed_linear import PackedLinear, refuse_loading

_ATTRIBUTE = "_lada_optimized"
FUSED = "lada_fused"
"""The name of the module that `optimize` adds to a layer on a GPU."""


@dataclass
class Record:
    """Of one optimized model. Modules go by their names in it.

    how: linear -> how it is computed and why. sources: on torch's meta device, what packed linears
    took the place of. forwards: modules whose forward was replaced. layers: those that were fused.
    training, trainable: modules and parameters that were so before.
    """

    dtype: torch.dtype
    how: dict[str, str] = field(default_factory=dict)
    sources: dict[str, nn.Module] = field(default_factory=dict)
    forwards: list[str] = field(default_factory=list)
    layers: list[str] = field(default_factory=list)
    training: list[str] = field(default_factory=list)
    trainable: list[str] = field(default_factory=list)
    refusals: list[RemovableHandle] = field(default_factory=list)

    @classmethod
    def before(cls, model: nn.Module, dtype: torch.dtype) -> Record:
        """Of a model in which nothing was changed yet."""
        training = [name for name, module in model.named_modules() if module.training]
        trainable = [name for name, p in model.named_parameters() if p.requires_grad]
        return cls(dtype, training=training, trainable=trainable)

    def freeze(self, model: nn.Module) -> None:
        """Into eval mode, no gradients, and no state dict into what the engine computes with."""
        changed = {name for name, _ in model.named_modules() if self._computes_with(name)}
        for name, module in model.named_modules():  # and each that would pass one on to those
            if name in changed or any(_within(inner, name) for inner in changed):
                self.refusals.append(module.register_load_state_dict_pre_hook(refuse_loading))
        model.eval().requires_grad_(False)
        setattr(model, _ATTRIBUTE, self)

    def _computes_with(self, name: str) -> bool:
        return name in self.sources or any(_within(name, layer) for layer in self.layers)

    def undo(self, model: nn.Module) -> list[str]:
        """Make `model` what it was; returns the names of the modules changed.

        The weights of packed linears come back as rounded to what they were packed in.
        """
        modules = {}
        for name, source in self.sources.items():  # all of them before the first is set
            modules[name] = source.to_empty(device="cpu")
            source.load_state_dict(model.get_submodule(name).state_dict())
        for name, source in modules.items():
            model.set_submodule(name, source)
        for name in self.layers:
            layer = model.get_submodule(name)
            delattr(layer, FUSED)
            for parameter in layer.parameters():  # no longer parts of joined ones
                parameter.data = parameter.data.clone()
        for name in self.forwards:
            del model.get_submodule(name).forward
        for handle in self.refusals:
            handle.remove()
        for name in self.training:
            model.get_submodule(name).training = True
        for name in self.trainable:
            model.get_parameter(name).requires_grad_()
        delattr(model, _ATTRIBUTE)
        return [*modules, *self.layers]


def record_of(module: nn.Module) -> Record | None:
    """What `optimize` did to this very module."""
    return vars(module).get(_ATTRIBUTE)


def _within(name: str, whole: str) -> bool:
    return not whole or f"{name}.".startswith(f"{whole}.")


def optimized_part(model: nn.Module) -> str | None:
    """The first module in `model` that `optimize` changed, by name; "" is the model itself."""
    for name, module in model.named_modules():
        if isinstance(module, PackedLinear) or hasattr(module, FUSED) or record_of(module):
            return name
    return None
