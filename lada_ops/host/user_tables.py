"""Where `lada tune` keeps what it measured on this user's GPUs."""

from __future__ import annotations

import functools
from pathlib import Path


def user_folder() -> Path:
    """The folder of the user's own tuned tables, in the cache folder of the system's convention."""
    from platformdirs import user_cache_path

    return user_cache_path("lada-ops", appauthor=False) / "tuned"


@functools.cache
def use_user_tables() -> None:
    """Let the kernels look into the user's tables too; to be called before the first launch."""
    from lada_kernels.tuning import add_folder

    try:
        add_folder(user_folder())
    except (
        ImportError
    ):  # run from the tree, without what is installed beside it: no tables of users
        return
