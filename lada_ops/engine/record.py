"""What `optimize` did to a model: kept on it, to be told and to be undone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
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
    """Changes to one optimized model, by module: names may move while it is optimized.

    how: linear -> how it is computed and why. sources: packed linear -> on torch's meta device,
    what it took the place of. attributes: those set on modules, such as forwards. layers: those
    that were fused. tied: parameters by owner and name that are one. training, trainable: modules
    and parameters that were so before.
    """

    dtype: torch.dtype
    how: dict[str, str] = field(default_factory=dict)
    sources: dict[nn.Module, nn.Module] = field(default_factory=dict)
    attributes: list[tuple[nn.Module, str, object]] = field(default_factory=list)
    layers: list[nn.Module] = field(default_factory=list)
    tied: list[list[tuple[nn.Module, str]]] = field(default_factory=list)
    training: list[nn.Module] = field(default_factory=list)
    trainable: list[nn.Parameter] = field(default_factory=list)
    refusals: list[RemovableHandle] = field(default_factory=list)

    def replace(self, model: nn.Module, packed: Mapping[str, PackedLinear]) -> None:
        """Put packed linears, by name, in the place of those in `self.sources`."""
        owners: dict[int, list[tuple[str, str]]] = defaultdict(list)
        for name, module in model.named_modules(remove_duplicate=False):
            for leaf, parameter in module.named_parameters(recurse=False):
                owners[id(parameter)].append((name, leaf))
        new = {id(model.get_submodule(name)): linear for name, linear in packed.items()}
        for name, module in [*model.named_modules(remove_duplicate=False)]:
            if id(module) in new:  # under each of its names
                model.set_submodule(name, packed.get(name, new[id(module)]))
        for places in owners.values():
            if len(places) > 1:
                self.tied.append([(model.get_submodule(name), leaf) for name, leaf in places])

    def set(self, module: nn.Module, name: str, value: object) -> None:
        """Give a module an attribute of its own, in the place of its class's."""
        setattr(module, name, value)
        self.attributes.append((module, name, value))

    def freeze(self, model: nn.Module) -> None:
        """Into eval mode, no gradients, and no state dict into what the engine computes with."""
        inside = {*self.sources, *(m for layer in self.layers for m in layer.modules())}
        changed = {name for name, module in model.named_modules() if module in inside}
        for name, module in model.named_modules():  # and each that would pass one on to those
            if name in changed or any(_within(inner, name) for inner in changed):
                self.refusals.append(module.register_load_state_dict_pre_hook(refuse_loading))
        self.training = [module for module in model.modules() if module.training]
        self.trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        model.eval().requires_grad_(False)
        setattr(model, _ATTRIBUTE, self)

    def undo(self, model: nn.Module) -> list[str]:
        """Make `model` what it was; returns the names of the modules changed.

        The weights of packed linears come back as rounded to what they were packed in, parameters
        that were one are one again, and what was replaced or cut since stays so.
        """
        places = dict(model.named_modules(remove_duplicate=False))
        before: dict[nn.Module, nn.Module] = {}
        for packed in places.values():  # all of them before the first is set
            if packed in self.sources and packed not in before:
                before[packed] = self.sources[packed].to_empty(device="cpu")
                before[packed].load_state_dict(packed.state_dict())
        for name, module in places.items():
            if module in before:
                model.set_submodule(name, before[module])
        for tied in self.tied:
            owners = [(before.get(module, module), leaf) for module, leaf in tied]
            # packed ones left are gone with what was cut; kept parameters were never rounded
            left = [one for one in owners if not isinstance(one[0], PackedLinear)]
            kept = [one for one in left if one in tied]
            for module, name in left:
                owner, leaf = (kept or left)[0]
                module.register_parameter(name, owner.get_parameter(leaf))
        for layer in self.layers:
            if hasattr(layer, FUSED):
                delattr(layer, FUSED)
            for parameter in layer.parameters():  # no longer parts of joined ones
                parameter.data = parameter.data.clone()
        for module, name, value in self.attributes:
            if vars(module).get(name) is value:
                delattr(module, name)
        for handle in self.refusals:
            handle.remove()
        for module in self.training:
            module.training = True
        for parameter in self.trainable:
            parameter.requires_grad_()
        delattr(model, _ATTRIBUTE)
        changed = {*before, *self.layers}
        return [name for name, module in places.items() if module in changed]


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
