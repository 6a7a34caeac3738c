"""What a contestant's process is told, what it makes of it, and how it says that it cannot."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

Call = Callable[[], Any]
# token ids (batch, length) int64 as numpy -> a call that returns last_hidden_state
Bind = Callable[[Any], Call]


class NotMeasured(RuntimeError):
    """Why there is no time: a package is missing, a runtime failed, an output is wrong."""


@dataclass(frozen=True)
class Setup:
    """One contestant's task.

    build: ``"module:function"``, called with this. weights: the file of the torch model. exports:
    where exports of these weights are kept, a folder. threads: how many it may use.
    """

    build: str
    weights: str
    exports: str
    threads: int
    precision: str

    def model(self) -> nn.Module:
        """The torch model in eval mode, in fp32 on the CPU."""
        return torch.load(self.weights, weights_only=False)

    def export(self, name: str) -> Path:
        """Where the export of that name is or goes."""
        folder = Path(self.exports)
        folder.mkdir(parents=True, exist_ok=True)
        return folder / name

    def start(self) -> Bind:
        """What `build` makes. Raises whatever it raises; `NotMeasured` if it cannot run here."""
        module, function = self.build.split(":")
        return getattr(importlib.import_module(module), function)(self)


def package(name: str) -> Any:
    """The module `name`, imported; `NotMeasured` if it is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise NotMeasured(f"{error.name} is not installed") from None
