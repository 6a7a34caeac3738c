"""Replacement of a whole folder on a disk: one step, nothing unwritten, no leftovers.

A run works in a hidden folder beside its target, named after it, and holds a lock in there; the
system lets go of the lock when the run ends, however it ends.
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
_LOCK = "lock"


def exchange(a: Path, b: Path) -> bool:
    """Give each of two paths what lies under the other, in one step. False where none can."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    if renameat2 is None:
        return False
    paths = os.fsencode(a), os.fsencode(b)
    return renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE) == 0


def flush(folder: Path) -> None:
    """Have the system write all files and names in `folder` to the disk, its own entry excepted."""
    for path, _, files in os.walk(folder, topdown=False):
        for name in files:
            _fsync(os.path.join(path, name))
        flush_names(path)


def flush_names(folder: str | Path) -> None:
    """Have the system write the names in `folder` to the disk, where it can."""
    with suppress(OSError):  # some disks over a network cannot, and Windows
        _fsync(folder)


def _fsync(path: str | Path) -> None:
    # Windows flushes what is open for writing alone
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def work_folder(target: Path) -> Iterator[Path]:
    """A hidden folder beside `target`, locked; the caller removes it, or `remove_dead` later."""
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    lock = os.open(work / "unlocked", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if _take(lock):  # renamed only now, so that it is never seen free
            os.rename(work / "unlocked", work / _LOCK)
        yield work
    finally:
        os.close(lock)


def remove_dead(target: Path) -> None:
    """Remove the hidden folders of runs that were to write `target` and were killed.

    A live run's is kept, and the old folder of one that was killed between two renames.
    """
    random = "?" * 8  # of tempfile.mkdtemp
    for found in target.parent.glob(f".{glob.escape(target.name)}.{random}/{_LOCK}"):
        with suppress(OSError):  # another run's, or gone meanwhile
            lock = os.open(found, os.O_RDWR)
            try:
                if _take(lock) and (target.exists() or not (found.parent / "old").exists()):
                    remove(found.parent)
            finally:
                os.close(lock)


def _take(lock: int) -> bool:
    """Whether the file is this run's alone from now on. Never where the system has no locks."""
    try:
        import fcntl

        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):  # Windows; held by another, or on a disk without locks
        return False
    return True


def remove(work: Path) -> None:
    """Remove a work folder and all in it that this user may, write-protected or not."""
    for path, inner, _ in os.walk(work):
        for name in inner:
            one = os.path.join(path, name)
            if not os.path.islink(one):
                with suppress(OSError):
                    os.chmod(one, 0o700)
    for part in work.iterdir():
        if part.name != _LOCK:  # last, or a run killed here leaves what no other knows
            shutil.rmtree(part, ignore_errors=True)
    shutil.rmtree(work, ignore_errors=True)
