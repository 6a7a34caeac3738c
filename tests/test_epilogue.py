"""What the ops share; a stand-in plays the input on a GPU."""

import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lada_kernels import tuning
from lada_ops.ops import epilogue


def on_gpu(dtype=torch.bfloat16) -> Any:
    return SimpleNamespace(dtype=dtype, get_device=lambda: 3)


@pytest.fixture(autouse=True)
def _nothing_warned_yet():
    epilogue.warn_once.cache_clear()


class TestKernelsRun:
    @pytest.fixture
    def gpu(self, monkeypatch):
        """To be called with the reason why a GPU cannot run the kernels, or None."""
        asked = []

        def gpu(reason):
            monkeypatch.setattr(tuning, "unsupported", lambda index: asked.append(index) or reason)
            return asked

        return gpu

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
    def test_on_a_gpu_that_has_what_they_need(self, gpu, dtype):
        asked = gpu(None)
        assert epilogue.kernels_run("low_rank_linear", on_gpu(dtype))
        assert asked == [3]

    def test_not_in_fp64(self, gpu):
        gpu(None)
        assert not epilogue.kernels_run("low_rank_linear", on_gpu(torch.float64))

    def test_an_old_gpu_is_named_once_with_what_is_needed(self, gpu):
        gpu("Tesla T4 has compute capability 7.5; expected 8.0 or newer")
        with pytest.warns(UserWarning, match="low_rank_linear: .* Tesla T4 .* expected 8.0"):
            assert not epilogue.kernels_run("low_rank_linear", on_gpu())
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert not epilogue.kernels_run("low_rank_linear", on_gpu())
