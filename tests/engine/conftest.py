import pytest

from lada_ops import optimize
from lada_ops.engine.optimize import fast_dtypes
from tests.engine.models import compress
from tests.tiny_encoders import tiny_bert


@pytest.fixture(autouse=True)
def _native():
    if not fast_dtypes():
        pytest.skip("no native library was built")


@pytest.fixture(autouse=True)
def cache_folder(monkeypatch, tmp_path):
    """Folder of cached choices, in the place of the user's own."""
    from lada_ops.engine.cpu import choice

    monkeypatch.setattr(choice, "user_folder", lambda: tmp_path / "cache" / "tuned")
    return tmp_path / "cache"


@pytest.fixture(params=["sdpa", "eager"])
def pair(request):
    """A compressed model, and the same model optimized."""
    before, after = (compress(tiny_bert(attn_implementation=request.param)) for _ in range(2))
    return before, optimize(after)
