"""Atomic writes of files and folders: whole or not at all; and JSON files, read with checks."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from .disk import exchange, flush, flush_names, remove, remove_dead, work_folder

T = TypeVar("T", dict[str, Any], list[Any])


def read_json(path: str | os.PathLike[str], expected: type[T]) -> T:
    """Content of a JSON file that holds an `expected`: dict or list.

    Raises ValueError, with the path, where it is no JSON, nested too deep, or another type; OSError
    where it cannot be read.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON that can be read: {error}") from error
    if not isinstance(content, expected):
        raise ValueError(
            f"{path} holds a JSON {type(content).__name__}; expected a JSON {expected.__name__}"
        )
    return content


def write_json(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Write `content` to `path` as JSON, as `write_whole` does.

    Raises ValueError or TypeError on values that JSON cannot hold (NaN, tensors).
    """
    write_whole(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_whole(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` to `path` atomically: to a temporary file that is then renamed.

    Missing folders are made. After an error (OSError on a full disk) an old file is unchanged.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_target(folder: str | Path, overwrite: bool) -> None:
    """Raise FileExistsError if `folder` is a file, or has content and `overwrite` is False."""
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; expected a folder")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise FileExistsError(f"{folder} is not empty; choose another folder, or overwrite it")


@contextmanager
def staged_folder(folder: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """Context of an empty folder that replaces `folder` if the block ends without an error.

    It is flushed to the disk and then takes the name `folder`, atomically where the system can
    exchange two names. After an error or an interrupt it is removed and `folder` is unchanged.
    Leftovers of killed runs are removed. A link to a folder stays, and its target is replaced.

    Raises FileExistsError as `check_target` does.
    """
    check_target(folder, overwrite)
    folder = Path(folder).resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_dead(folder)
    # on the same file system, so that the new folder only has to be renamed
    with work_folder(folder) as work:
        stage, aside = work / "new", work / "old"
        try:
            stage.mkdir()
            yield stage
            flush(stage)
            check_target(folder, overwrite)
            _replace(stage, folder, aside)
            flush_names(folder.parent)
        finally:
            # if the old folder could not be put back, it is still in `work`
            if folder.exists() or not aside.exists():
                remove(work)


def _replace(stage: Path, folder: Path, aside: Path) -> None:
    if not folder.exists():
        os.rename(stage, folder)
        return
    if exchange(stage, folder):
        return
    try:
        os.rename(folder, aside)
        os.rename(stage, folder)
    except BaseException:
        if aside.exists() and not folder.exists():
            os.rename(aside, folder)
        raise
