"""Checks of models given to public functions."""

from __future__ import annotations

from typing import Any

from torch import nn


def check_module(owner: str, model: Any, values: bool = False) -> None:
    """Raise TypeError unless `model` is an nn.Module.

    With `values`, raise ValueError too if a parameter is on the meta device, so without values.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"{owner}: model is {type(model).__name__}; expected a torch.nn.Module")
    if values:
        for name, parameter in model.named_parameters():
            if parameter.is_meta:
                raise ValueError(
                    f"{owner}: {name} is on torch's meta device; expected a model whose weights "
                    "are loaded, all of them into memory"
                )
