import pytest

from lada_ops.engine.optimize import fast_dtypes
from lada_ops.latency.cold import cold_start
from tests.tiny_model import write_tiny_model


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Cold start of a tiny model, optimized where the native library was built."""
    folder = str(write_tiny_model(tmp_path_factory.mktemp("model")))
    return cold_start(folder, *(["float32"] if fast_dtypes() else []), size=(1, 8))


def test_a_process_tells_what_it_took(found):
    assert min(found.imports, found.load, found.first, found.next) > 0
    assert found.peak_bytes > found.model_bytes > 0
    assert found.imports > 0.1  # an interpreter and torch


def test_one_that_optimizes(found):
    if not fast_dtypes():
        pytest.skip("no native library was built")
    assert found.optimize > 1e-4


def test_one_that_fails_says_why(tmp_path):
    with pytest.raises(RuntimeError, match="no config.json"):
        cold_start(str(tmp_path))
