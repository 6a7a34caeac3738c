import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lada_kernels import tuning
from lada_ops.host import user_tables
from lada_ops.ops.dispatch import kernels_run


@pytest.fixture(autouse=True)
def folders(monkeypatch):
    found = [tuning.SHIPPED]
    monkeypatch.setattr(tuning, "_folders", found)
    user_tables.use_user_tables.cache_clear()
    yield found
    user_tables.use_user_tables.cache_clear()


def test_the_users_tables_come_before_the_shipped_ones(folders):
    user_tables.use_user_tables()
    assert folders == [user_tables.user_folder(), tuning.SHIPPED]


def test_they_are_used_before_an_op_launches(folders, monkeypatch):
    monkeypatch.setattr(tuning, "unsupported", lambda index: None)
    x: Any = SimpleNamespace(is_cuda=True, dtype=torch.float32, get_device=lambda: 0)
    assert kernels_run("op", x)
    assert user_tables.user_folder() in folders


def test_they_lie_in_the_users_cache(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/home/somebody/.cache")
    if sys.platform == "linux":
        assert user_tables.user_folder() == Path("/home/somebody/.cache/lada-ops/tuned")
    assert user_tables.user_folder().is_absolute()


def test_without_platformdirs_there_are_the_shipped_ones(folders, monkeypatch):
    monkeypatch.setitem(sys.modules, "platformdirs", None)
    user_tables.use_user_tables()
    assert folders == [tuning.SHIPPED]
