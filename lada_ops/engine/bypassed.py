"""Modules that an engine bypasses: their hooks, their training mode, their copies."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.nn.modules import module as torch_module
from torch.utils.hooks import RemovableHandle


class BypassedModules:
    """Modules that an engine computes without calling them.

    `hooked` is cached until any hook is registered: to look at every module in each call would take
    as long as a layer.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._modules = list(modules)
        # the only modules that training mode changes; `train` of any parent reaches them
        self._dropouts = [module for module in modules if isinstance(module, nn.Dropout)]
        self._hooked, self._hook_id = False, -1

    def check_eval(self, owner: nn.Module) -> None:
        """Raise RuntimeError if `owner` or a part of it is in training mode."""
        if owner.training or any(dropout.training for dropout in self._dropouts):
            # the engine would silently leave out dropout
            raise RuntimeError(
                f"{type(owner).__name__}: in training mode; expected model.eval(), since the model "
                "was optimized for inference"
            )

    def hooked(self) -> bool:
        """True if one of the modules has a forward hook; see the function `hooked`."""
        hook_id = RemovableHandle.next_id  # torch's counter of all hooks ever registered
        if self._hooked or self._hook_id != hook_id:
            self._hooked, self._hook_id = hooked(self._modules), hook_id
        return self._hooked

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_hook_id": -1}  # the counter of another process differs


def hooked(modules: Sequence[nn.Module]) -> bool:
    """True if a module has a forward hook other than transformers' own for output capturing."""
    if torch_module._global_forward_pre_hooks or torch_module._global_forward_hooks:
        return True
    for module in modules:
        if module._forward_pre_hooks or module._forward_hooks:
            hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
            if any(hook.__module__ != "transformers.utils.output_capturing" for hook in hooks):
                return True
    return False


def copied_module(module: nn.Module, with_hooks: bool) -> nn.Module:
    """Deep copy of `module` that shares its hook dictionaries, or has empty ones.

    Shared, so that the handles of the hooks still remove them. The objects that hooks are bound to
    are not copied: they may be large, or not copyable.
    """
    held = (item for m in module.modules() for item in vars(m).items())
    hooks = [value for name, value in held if name.startswith(("_forward_", "_backward_"))]
    return copy.deepcopy(module, {id(h): h if with_hooks else type(h)() for h in hooks})
