"""Record of the changes that `optimize` made to a model, which `restore` undoes."""

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
"""Name of the submodule that `optimize` adds to a layer on a GPU."""


@dataclass
class Record:
    """Changes to one optimized model, by module, since names may change while it is optimized.

    how: linear's name -> what computes it, and why. sources: packed linear -> the linear that it
    replaced, on the meta device. attributes: (module, name, value) set on modules, such as
    forwards. layers: the fused layers. tied: groups of (owner, name) that share one parameter.
    training, trainable: modules in training mode and parameters with gradients before.
    load_hooks: handles of the hooks that refuse state dicts.
    """

    dtype: torch.dtype
    how: dict[str, str] = field(default_factory=dict)
    sources: dict[nn.Module, nn.Module] = field(default_factory=dict)
    attributes: list[tuple[nn.Module, str, object]] = field(default_factory=list)
    layers: list[nn.Module] = field(default_factory=list)
    tied: list[list[tuple[nn.Module, str]]] = field(default_factory=list)
    training: list[nn.Module] = field(default_factory=list)
    trainable: list[nn.Parameter] = field(default_factory=list)
    load_hooks: list[RemovableHandle] = field(default_factory=list)

    def replace(self, model: nn.Module, packed: Mapping[str, PackedLinear]) -> None:
        """Replace the linears of `model` by packed ones, given by name; records tied parameters."""
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
        """Set an attribute of a module, which hides that of its class."""
        setattr(module, name, value)
        self.attributes.append((module, name, value))

    def freeze(self, model: nn.Module) -> None:
        """Set eval mode, disable gradients, and refuse state dicts for the engine's modules."""
        engine_modules = {*self.sources, *(m for layer in self.layers for m in layer.modules())}
        changed = {name for name, module in model.named_modules() if module in engine_modules}
        for name, module in model.named_modules():  # parents would pass a state dict on
            if name in changed or any(_within(inner, name) for inner in changed):
                self.load_hooks.append(module.register_load_state_dict_pre_hook(refuse_loading))
        self.training = [module for module in model.modules() if module.training]
        self.trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        model.eval().requires_grad_(False)
        setattr(model, _ATTRIBUTE, self)

    def undo(self, model: nn.Module) -> list[str]:
        """Restore `model` as it was before; returns the names of the modules changed.

        The weights of packed linears come back as rounded to the packed dtype, and tied parameters
        are tied again. Modules that were replaced or removed after `optimize` stay so.
        """
        places = dict(model.named_modules(remove_duplicate=False))
        linears: dict[nn.Module, nn.Module] = {}
        for packed in places.values():  # all of them before the first is set
            if packed in self.sources and packed not in linears:
                linears[packed] = self.sources[packed].to_empty(device="cpu")
                linears[packed].load_state_dict(packed.state_dict())
        for name, module in places.items():
            if module in linears:
                model.set_submodule(name, linears[module])
        for tied in self.tied:
            owners = [(linears.get(module, module), leaf) for module, leaf in tied]
            # a PackedLinear here was removed from the model together with its layer
            left = [owner for owner in owners if not isinstance(owner[0], PackedLinear)]
            unrounded = [owner for owner in left if owner in tied]
            for module, name in left:
                first, leaf = (unrounded or left)[0]
                module.register_parameter(name, first.get_parameter(leaf))
        for layer in self.layers:
            if hasattr(layer, FUSED):
                delattr(layer, FUSED)
            for parameter in layer.parameters():  # no longer views of merged weights
                parameter.data = parameter.data.clone()
        for module, name, value in self.attributes:
            if vars(module).get(name) is value:
                delattr(module, name)
        for handle in self.load_hooks:
            handle.remove()
        for module in self.training:
            module.training = True
        for parameter in self.trainable:
            parameter.requires_grad_()
        delattr(model, _ATTRIBUTE)
        changed = {*linears, *self.layers}
        return [name for name, module in places.items() if module in changed]


def record_of(module: nn.Module) -> Record | None:
    """Record of `optimize` on this very module, if any."""
    return vars(module).get(_ATTRIBUTE)


def _within(name: str, parent: str) -> bool:
    return not parent or f"{name}.".startswith(f"{parent}.")


def optimized_part(model: nn.Module) -> str | None:
    """Name of the first module in `model` that `optimize` changed; "" is the model itself."""
    for name, module in model.named_modules():
        if isinstance(module, PackedLinear) or hasattr(module, FUSED) or record_of(module):
            return name
    return None
