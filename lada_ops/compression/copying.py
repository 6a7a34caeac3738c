"""Files that a saved model takes over from the folder or hub name it came from."""

from __future__ import annotations

import fnmatch
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

# at the top of a folder: what save_pretrained writes anew, other forms of the same weights, and
# what belongs to their training; further down are parts of their own, such as a dense layer
_REPLACED = (
    *("config.json", "model.*safetensors", "model-*-of-*.safetensors", "model.*index.json"),
    *("pytorch_model*.bin", "pytorch_model*.index.json", "tf_model*.h5", "flax_model*.msgpack"),
    *("rust_model.ot", "model*.onnx", "onnx", "openvino_model*", "openvino", "coreml"),
    *("*.tflite", "*.gguf"),
    *("optimizer.pt", "checkpoint-*"),
)


def local_folder(source: str) -> Path:
    """The folder of a model, or the snapshot of a hub name: all of it that `kept_files` keeps."""
    if Path(source).is_dir():
        return Path(source).resolve()
    from huggingface_hub import snapshot_download

    ignored = [pattern for name in (*_REPLACED, ".*") for pattern in (name, f"{name}/*")]
    return Path(snapshot_download(source, ignore_patterns=ignored)).resolve()


def kept_files(source: str, target: str | Path) -> Mapping[Path, Path]:
    """Files and folders that a model saved to `target` takes over, by their place in `source`.

    All but the weights that the new ones replace, in whatever form, hidden files, and `target`.
    A link is followed within the source, and from a snapshot of the hub's cache to the blobs of
    its repository.

    Raises ValueError on links that lead elsewhere, and on what is neither file nor folder.
    """
    folder, target = local_folder(source), Path(target).resolve()
    roots = [folder]
    if folder.parent.name == "snapshots":
        roots.append(folder.parent.parent / "blobs")
    found: dict[Path, Path] = {}
    for path, inner, files in os.walk(folder):
        here = Path(path)
        kept = [name for name in inner if (here / name).resolve() != target]
        for name in (*files, *kept):
            place = (here / name).relative_to(folder)
            if not _is_replaced(place):
                found[place] = _own(here / name, roots)
        inner[:] = [name for name in kept if (here / name).relative_to(folder) in found]
    return found


def copy_files(files: Mapping[Path, Path], folder: Path) -> None:
    """Copy what `kept_files` found to `folder`, as its owner may write it."""
    for place, path in files.items():
        if path.is_dir():
            (folder / place).mkdir(exist_ok=True)
        else:
            shutil.copyfile(path, folder / place, follow_symlinks=False)


def transformers_in(folder: Path) -> list[str]:
    """Folders further down that hold a model of transformers', by their place in `folder`."""
    return sorted(
        path.parent.relative_to(folder).as_posix()
        for path in folder.glob("*/**/config.json")
        if '"model_type"' in path.read_text(encoding="utf-8", errors="replace")
    )


def _is_replaced(place: Path) -> bool:
    top = len(place.parts) == 1
    return place.name.startswith(".") or (
        top and any(fnmatch.fnmatchcase(place.name, pattern) for pattern in _REPLACED)
    )


def _own(path: Path, roots: list[Path]) -> Path:
    """The folder or regular file that `path` is, or the file that it links to in one of `roots`."""
    real = Path(os.path.realpath(path))
    if not any(real.is_relative_to(root) for root in roots):
        raise ValueError(
            f"{path} is a link to {real}, which is not the model's own; expected a file in "
            f"{roots[0]}"
        )
    if not real.is_file() and (path.is_symlink() or not path.is_dir()):
        raise ValueError(f"{path} is no regular file; expected a file or folder")
    return real
