"""Model folders: load one with the class it was saved from, write one whole or not at all."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from inspect import signature
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeVar

import torch
import transformers
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, PreTrainedModel

from ..host.files import staged_folder
from . import pretrained  # noqa: F401  registers compressed checkpoints with transformers
from .copying import copy_files, kept_files, transformers_in

Model = TypeVar("Model", bound=PreTrainedModel)


def load_config(model: str) -> transformers.PreTrainedConfig:
    """Config of a local folder or a hub name. Raises ValueError on a folder without one."""
    folder = Path(model)
    if not folder.exists() and (folder.is_absolute() or model.startswith(".")):
        raise FileNotFoundError(f"{model} does not exist; expected a model's folder or hub name")
    if folder.exists() and not (folder / "config.json").is_file():
        inner = transformers_in(folder)
        raise ValueError(
            f"{model} is no model: it has no config.json; expected a folder that save_pretrained "
            "wrote, or the name of a model on the hub"
            + (f"; there are models in {inner}" if inner else "")
        )
    return AutoConfig.from_pretrained(model)


def load_model(model: str, device: str | None = None) -> PreTrainedModel:
    """Model of a local folder or a hub name, in eval mode, as the class it was saved from.

    device: by default the GPU if there is one, else the CPU.

    Raises ValueError if the folder is no model, OSError if it is not found, and the errors of
    `load_whole`.
    """
    architecture, *_ = load_config(model).architectures or ["AutoModel"]
    cls = getattr(transformers, architecture, None)
    if cls is None:
        raise ValueError(
            f"{model} is a {architecture}, which transformers does not have; expected one of its "
            "classes, or the model compressed from Python by lada_ops.compress"
        )
    loaded = load_whole(cls, model).eval()
    nn.Module.to(loaded, device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return loaded


def load_whole(cls: type[Model], model: str | Path, **kwargs: Any) -> Model:
    """Model of class `cls` from a folder or hub name, with every tensor from there.

    An encoder saved without its pooler is loaded without one. Heads in the file that `cls` lacks,
    such as another task's, are left out with a warning. kwargs: of `from_pretrained`.

    Raises ValueError on tensors that are missing, superfluous, of another shape or damaged.
    """
    found, info = _from_pretrained(cls, model, kwargs)
    missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    options = signature(type(found)).parameters if found.base_model is found else {}
    no_pooler = missing and all(name.startswith("pooler.") for name in missing)
    if no_pooler and "add_pooling_layer" in options and "add_pooling_layer" not in kwargs:
        return load_whole(cls, model, add_pooling_layer=False, **kwargs)
    parts = {name for name, _ in found.base_model.named_children()}
    prefix = f"{found.base_model_prefix}."
    superfluous = [n for n in unexpected if n.removeprefix(prefix).split(".")[0] in parts]
    if info["mismatched_keys"]:
        name, got, expected = min(info["mismatched_keys"])
        raise ValueError(
            f"{model}: {name} is {tuple(got)} in the weights; expected {tuple(expected)}, as its "
            "config has it"
        )
    if missing:
        raise ValueError(
            f"{model} lacks {_some(missing)}; expected every tensor of a {type(found).__name__}"
        )
    if superfluous:
        raise ValueError(
            f"{model} holds {_some(superfluous)}, which a {type(found).__name__} has not; "
            "expected the tensors of its config alone"
        )
    if unexpected:
        warnings.warn(
            f"{model} holds heads that a {type(found).__name__} has not, and is loaded without: "
            f"{_some(unexpected)}",
            stacklevel=3,
        )
    return found


def _from_pretrained(
    cls: type[Model], model: str | Path, kwargs: Mapping[str, Any]
) -> tuple[Model, Mapping[str, Any]]:
    """Model, and transformers' lists of missing, unexpected and mismatched tensors."""
    asked: dict[str, Any] = {"output_loading_info": True, "ignore_mismatched_sizes": True, **kwargs}
    try:
        return cls.from_pretrained(model, **asked)  # type: ignore[return-value]
    # torch's own for files that are cut off or are no pickle
    except (SafetensorError, RuntimeError, EOFError, UnpicklingError) as error:
        raise ValueError(f"the weights in {model} are damaged: {error}") from error


def _some(names: Sequence[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def save_model(
    model: PreTrainedModel, source: str, folder: str | Path, overwrite: bool = False
) -> None:
    """Write `model` to `folder` with the other files of its `source` folder or hub name.

    Tokenizer, modules of sentence-transformers with their weights, remote code and the like are
    copied (see `kept_files`), so that the result can replace the source.

    Raises the errors of `kept_files` and `staged_folder`; the folder is then unchanged.
    """
    files = kept_files(source, folder)
    with staged_folder(folder, overwrite) as stage:
        copy_files(files, stage)
        model.save_pretrained(stage)
