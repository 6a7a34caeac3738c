import pytest

from lada_ops.engine.optimize import fast_dtypes
from lada_ops.latency.cold import cold_start
from tests.tiny_model import write_tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(write_tiny_model(tmp_path_factory.mktemp("model")))


def test_a_process_tells_what_it_took(folder):
    found = cold_start(folder, size=(1, 8))
    assert min(found.imports, found.load, found.first, found.next) > 0
    assert found.peak_bytes > found.model_bytes > 0
    assert found.imports > 0.1  # an interpreter and torch


def test_one_that_optimizes(folder):
    if not fast_dtypes():
        pytest.skip("no native library was built")
    assert cold_start(folder, "float32", size=(1, 8)).optimize > 1e-4


def test_one_that_fails_says_why(tmp_path):
    with pytest.raises(RuntimeError, match="no config.json"):
        cold_start(str(tmp_path))
