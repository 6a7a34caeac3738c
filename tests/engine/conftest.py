import pytest

from lada_ops.engine.optimize import fast_dtypes


@pytest.fixture(autouse=True)
def _native():
    if not fast_dtypes():
        pytest.skip("no native library was built")


@pytest.fixture(autouse=True)
def cache_folder(monkeypatch, tmp_path):
    """Where choices are remembered, instead of the user's own."""
    from lada_ops.engine import choice

    monkeypatch.setattr(choice, "user_folder", lambda: tmp_path / "cache" / "tuned")
    return tmp_path / "cache"
