"""Hooks of modules that an engine does not call: whether somebody waits for them to be called."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.nn.modules import module as torch_module
from torch.utils.hooks import RemovableHandle


class Inside:
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
        """Whether someone waits for one of them to be called; see `hooked`."""
        ever = RemovableHandle.next_id  # counts the hooks of all modules that there ever were
        if self._hooked or self._hooks_ever != ever:
            self._hooked, self._hooks_ever = hooked(self._modules), ever
        return self._hooked

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_hooks_ever": -1}  # another process has counted others


def hooked(modules: Sequence[nn.Module]) -> bool:
    """Whether someone waits for a module to be called, other than transformers for its outputs."""
    if torch_module._global_forward_pre_hooks or torch_module._global_forward_hooks:
        return True
    for module in modules:
        if module._forward_pre_hooks or module._forward_hooks:
            hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
            if any(hook.__module__ != "transformers.utils.output_capturing" for hook in hooks):
                return True
    return False


def copied_module(module: nn.Module, with_hooks: bool) -> nn.Module:
    """A deep copy whose hooks are the very ones of `module`, which their handles remove; or none.

    What a hook belongs to is not copied: it may be large, and not every object can be.
    """
    held = (item for m in module.modules() for item in vars(m).items())
    hooks = [value for name, value in held if name.startswith(("_forward_", "_backward_"))]
    return copy.deepcopy(module, {id(h): h if with_hooks else type(h)() for h in hooks})
