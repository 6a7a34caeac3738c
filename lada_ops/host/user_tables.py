"""Tuned tables of the user, written by `lada tune`."""

from __future__ import annotations

import functools
from pathlib import Path


def user_folder() -> Path:
    """Folder of the user's tuned tables, in the user's cache folder by the system's convention."""
    from platformdirs import user_cache_path

    return user_cache_path("lada-ops", appauthor=False) / "tuned"


@functools.cache
def use_user_tables() -> None:
    """Let the kernels prefer the user's tables to the shipped ones; call before any launch."""
    from lada_kernels.tuning import add_folder

    try:
        add_folder(user_folder())
    except ImportError:  # run from a checkout without platformdirs: shipped tables only
        return
