"""Model folders: load one with the class it was saved from, write one whole or not at all."""

from __future__ import annotations

import fnmatch
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel

from . import pretrained  # noqa: F401  registers compressed checkpoints with transformers

_WEIGHTS = ("*.safetensors", "*.bin", "*.h5", "*.msgpack", "*.onnx", "*.index.json", "*.pt", ".*")


def load_config(model: str) -> transformers.PreTrainedConfig:
    """The config of a local folder or a hub name. Raises ValueError on a folder without one."""
    folder = Path(model)
    if not folder.exists() and (folder.is_absolute() or model.startswith(".")):
        raise FileNotFoundError(f"{model} does not exist; expected a model's folder or hub name")
    if folder.exists() and not (folder / "config.json").is_file():
        raise ValueError(
            f"{model} is no model: it has no config.json; expected a folder that save_pretrained "
            "wrote, or the name of a model on the hub"
        )
    return AutoConfig.from_pretrained(model)


def load_model(model: str, device: str | None = None) -> PreTrainedModel:
    """The model of a local folder or a hub name, in eval mode, as the class it was saved from.

    device: by default the GPU if there is one, else the CPU.

    Raises ValueError if the folder is no model or its weights are damaged, OSError if it is not
    found.
    """
    architecture, *_ = load_config(model).architectures or ["AutoModel"]
    cls = getattr(transformers, architecture, None)
    if cls is None:
        raise ValueError(
            f"{model} is a {architecture}, which transformers does not have; expected one of its "
            "classes, or the model compressed from Python by lada_ops.compress"
        )
    try:
        loaded = cls.from_pretrained(model).eval()
    except SafetensorError as error:
        raise ValueError(f"the weights in {model} are damaged: {error}") from error
    nn.Module.to(loaded, device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return loaded


def longest(model: PreTrainedModel) -> int:
    """The longest text, in tokens, that the model has positions for."""
    config = model.config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None) or 2**31
    # roberta and its kin count positions from the one after the padding
    return positions - 2 if "roberta" in config.model_type else positions


def save_model(
    model: PreTrainedModel, source: str, folder: str | Path, overwrite: bool = False
) -> None:
    """Write `model` to `folder` with what else its `source` folder or hub name holds.

    Tokenizer, pooling settings and the like are taken over, so the result takes the place of the
    source. Raises as `staged_folder` does; the folder is then as before.
    """
    with staged_folder(folder, overwrite) as stage:
        if Path(source).is_dir():
            shutil.copytree(source, stage, ignore=_weights_and_config(source), dirs_exist_ok=True)
        else:
            AutoTokenizer.from_pretrained(source).save_pretrained(stage)
        model.save_pretrained(stage)


def _weights_and_config(source: str) -> Callable[[str, list[str]], set[str]]:
    """What `shutil.copytree` must leave behind: save_pretrained writes its own."""

    def ignore(folder: str, names: list[str]) -> set[str]:
        left = {name for pattern in _WEIGHTS for name in fnmatch.filter(names, pattern)}
        # a config.json further down belongs to a part of its own, such as a pooling layer
        return left | {"config.json"} if folder == source else left

    return ignore


def check_target(folder: str | Path, overwrite: bool) -> None:
    """Raise FileExistsError if writing to `folder` would lose what it holds."""
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; expected a folder")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise FileExistsError(f"{folder} is not empty; choose another folder, or overwrite it")


@contextmanager
def staged_folder(folder: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """A new folder beside `folder` that takes its name when the block ends without an error.

    After an error or an interrupt it is removed, and `folder` is as before. Raises FileExistsError
    as `check_target` does.
    """
    check_target(folder, overwrite)
    folder = Path(folder).absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    # a folder to itself, on the same file system, so that renaming is all that is left to do
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    stage, aside = work / "new", work / "old"
    try:
        stage.mkdir()
        yield stage
        try:
            if folder.exists():
                os.rename(folder, aside)
            os.rename(stage, folder)
        except BaseException:
            if aside.exists() and not folder.exists():
                os.rename(aside, folder)
            raise
    finally:
        # if even putting it back failed, the old folder is still in there
        if folder.exists() or not aside.exists():
            shutil.rmtree(work, ignore_errors=True)
