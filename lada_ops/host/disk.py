"""Atomic replacement of a folder: exchange of names, flushing, and removal of leftovers.

A run writes to a hidden work folder beside its target, named after it, and holds a file lock in it.
The system releases the lock when the process ends, even if it is killed, so that a later run can
tell leftovers from the work of a live run.
"""

from __future__ import annotations

import ctypes
import glob
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of linux/fcntl.h and linux/fs.h
_LOCK_FILE = "lock"


def exchange(a: Path, b: Path) -> bool:
    """Exchange the names of two paths atomically; False where the system cannot."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    if renameat2 is None:
        return False
    paths = os.fsencode(a), os.fsencode(b)
    return renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE) == 0


def flush(folder: Path) -> None:
    """Flush all files and names in `folder` to the disk, but not its own name."""
    for path, _, files in os.walk(folder, topdown=False):
        for name in files:
            _fsync(os.path.join(path, name))
        flush_names(path)


def flush_names(folder: str | Path) -> None:
    """Flush the names in `folder` to the disk, where the system can."""
    with suppress(OSError):  # some network disks cannot, nor can Windows
        _fsync(folder)


def _fsync(path: str | Path) -> None:
    # Windows flushes only files that are open for writing
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def work_folder(target: Path) -> Iterator[Path]:
    """Hidden, locked work folder beside `target`, to be removed by the caller or `remove_dead`."""
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    lock = os.open(work / "unlocked", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if _lock(lock):  # renamed once locked: no other run sees it unlocked
            os.rename(work / "unlocked", work / _LOCK_FILE)
        yield work
    finally:
        os.close(lock)


def remove_dead(target: Path) -> None:
    """Remove the work folders that killed runs left beside `target`.

    Keeps those of live runs, and one that holds the only old `target` because its run was killed
    between two renames.
    """
    random = "?" * 8  # suffix by tempfile.mkdtemp
    for lock_file in target.parent.glob(f".{glob.escape(target.name)}.{random}/{_LOCK_FILE}"):
        with suppress(OSError):  # another user's, or already removed
            lock = os.open(lock_file, os.O_RDWR)
            try:
                work = lock_file.parent
                if _lock(lock) and (target.exists() or not (work / "old").exists()):
                    remove(work)
            finally:
                os.close(lock)


def _lock(descriptor: int) -> bool:
    """Lock an open file; False if another run holds the lock, or the system has none."""
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):  # Windows; a lock held by another run, or a disk without locks
        return False
    return True


def remove(work: Path) -> None:
    """Remove a work folder, write-protected folders in it included; errors are ignored."""
    for path, inner, _ in os.walk(work):
        for name in inner:
            folder = os.path.join(path, name)
            if not os.path.islink(folder):
                with suppress(OSError):
                    os.chmod(folder, 0o700)
    for part in work.iterdir():
        if part.name != _LOCK_FILE:  # last: without it no later run knows a leftover
            shutil.rmtree(part, ignore_errors=True)
    shutil.rmtree(work, ignore_errors=True)
