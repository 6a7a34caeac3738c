"""Dispatch of the ops; a stand-in plays the input on a GPU."""

import warnings
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lada_kernels import tuning
from lada_ops.ops import (
    add_norm,
    block_sparse_linear,
    dispatch,
    low_rank_ffn,
    low_rank_linear,
    sparse_low_rank_linear,
)


def on_gpu(dtype=torch.bfloat16) -> Any:
    return SimpleNamespace(dtype=dtype, is_cuda=True, get_device=lambda: 3)


@pytest.fixture(autouse=True)
def _nothing_warned_yet():
    dispatch.warn_once.cache_clear()


class TestKernelsRun:
    @pytest.fixture
    def gpu(self, monkeypatch):
        """Function that sets the reason why a GPU cannot run the kernels, or None."""
        asked = []

        def gpu(reason):
            monkeypatch.setattr(tuning, "unsupported", lambda index: asked.append(index) or reason)
            return asked

        return gpu

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
    def test_on_a_gpu_that_has_what_they_need(self, gpu, dtype):
        asked = gpu(None)
        assert dispatch.kernels_run("low_rank_linear", on_gpu(dtype))
        assert asked == [3]

    def test_not_in_fp64(self, gpu):
        gpu(None)
        assert not dispatch.kernels_run("low_rank_linear", on_gpu(torch.float64))

    def test_an_old_gpu_is_named_once_with_what_is_needed(self, gpu):
        gpu("Tesla T4 has compute capability 7.5; expected 8.0 or newer")
        with pytest.warns(UserWarning, match="low_rank_linear: .* Tesla T4 .* expected 8.0"):
            assert not dispatch.kernels_run("low_rank_linear", on_gpu())
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert not dispatch.kernels_run("low_rank_linear", on_gpu())


def test_a_body_runs_on_the_gpu_of_its_first_tensor(monkeypatch):
    log = []

    @contextmanager
    def device_of(x):
        log.append(x)
        yield
        log.append("left")

    monkeypatch.setattr(torch.cuda, "device_of", device_of)

    def body(*args: Any, **kwargs: Any) -> Any:
        log.append((args, kwargs))

    x = on_gpu()
    dispatch.on_its_gpu(body)(x, 1, order=2)
    assert log == [x, ((x, 1), {"order": 2}), "left"]
    log.clear()
    dispatch.on_its_gpu(body)(on_cpu := torch.ones(1))
    assert log == [((on_cpu,), {})]


@pytest.mark.parametrize(
    "op",
    [
        low_rank_linear._op,
        low_rank_linear.dx_op,
        low_rank_linear.dfactors_op,
        low_rank_ffn._op,
        block_sparse_linear._op,
        block_sparse_linear.dx_op,
        block_sparse_linear.dvalues_op,
        sparse_low_rank_linear._op,
        add_norm._op,
    ],
    ids=lambda op: op._name,
)
def test_every_op_enters_it(op, monkeypatch):
    def device_of(x):
        raise InterruptedError(x)

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    with pytest.raises(InterruptedError):
        op._init_fn(on_gpu())
