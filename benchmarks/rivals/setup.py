"""Setup of a contestant's process, and the error of one that cannot run."""

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
    """Reason for a missing time: a missing package, a failed runtime, a wrong output."""


@dataclass(frozen=True)
class Setup:
    """Arguments of a contestant's process.

    build: ``"module:function"``, called with this setup. weights: file of the torch model. exports:
    folder of exports of these weights. threads: number of threads it may use.
    """

    build: str
    weights: str
    exports: str
    threads: int
    precision: str

    def model(self) -> nn.Module:
        """Torch model in eval mode, in fp32 on the CPU."""
        return torch.load(self.weights, weights_only=False)

    def export(self, name: str) -> Path:
        """Path of the export `name`, in a folder that exists."""
        folder = Path(self.exports)
        folder.mkdir(parents=True, exist_ok=True)
        return folder / name

    def start(self) -> Bind:
        """Result of `build`, which raises `NotMeasured` if the contestant cannot run here."""
        module, function = self.build.split(":")
        return getattr(importlib.import_module(module), function)(self)


def package(name: str) -> Any:
    """Module `name`. Raises NotMeasured if it is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise NotMeasured(f"{error.name} is not installed") from None
