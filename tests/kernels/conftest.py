"""Fixtures of the kernels: compiled on a GPU if there is one, else in Triton's interpreter."""

import importlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.interpreter import interpreted

ROOM = Path(__file__).parents[2] / "kernels/lada_kernels"
MODULES = sorted(path.stem for path in ROOM.glob("*.py") if path.stem != "__init__")
PAD = 4096
CANARY = 1234.0


@pytest.fixture(scope="session")
def kernels() -> SimpleNamespace:
    """The modules of lada_kernels by name, to be called on the tensors of `device`."""
    if not torch.cuda.is_available():
        return interpreted({stem: f"lada_kernels.{stem}" for stem in MODULES})
    modules = {stem: importlib.import_module(f"lada_kernels.{stem}") for stem in MODULES}
    return SimpleNamespace(**modules, triton=importlib.import_module("triton"))


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(params=["float32", "float16", "bfloat16"])
def dtype(request, device) -> torch.dtype:
    if request.param == "bfloat16" and device.type == "cpu":
        pytest.skip("the interpreter multiplies the bit patterns of bfloat16")
    return getattr(torch, request.param)


@pytest.fixture(autouse=True)
def _seed_and_one_thread():
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def poisoned_outputs(monkeypatch):
    """Outputs start as NaN between two fences: what is left unwritten or overrun fails the test."""
    new_empty, buffers = torch.Tensor.new_empty, []

    def poisoned(self, *size, **kwargs):
        shape = torch.Size(size)
        if len(shape) != 2 or self.is_meta:  # not an output: Triton's interpreter allocates too
            return new_empty(self, *size, **kwargs)
        buffer = new_empty(self, PAD + shape.numel() + PAD, **kwargs).fill_(CANARY)
        buffers.append(buffer)
        return buffer[PAD:-PAD].view(shape).fill_(float("nan"))

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)
    yield
    for buffer in buffers:
        assert (buffer[:PAD] == CANARY).all(), "wrote before the output"
        assert (buffer[-PAD:] == CANARY).all(), "wrote past the output"


@pytest.fixture
def watch_reads(kernels, device, monkeypatch):
    """Function of the operands after which an interpreted kernel may load their elements only."""

    def watch(*operands):
        if device.type == "cuda":  # there, NaN around the operands must do
            return
        elements = [_addresses(t) for t in operands]
        builder = kernels.triton.runtime.interpreter.InterpreterBuilder
        load = builder.create_masked_load

        def checked_load(self, ptrs, mask, *args):
            stray = ~np.isin(ptrs.data[mask.data], np.concatenate(elements))
            assert not stray.any(), "read outside the operands"
            return load(self, ptrs, mask, *args)

        def recorded(make):  # what one launch leaves, the next may read
            def call(*args, **kwargs):
                made = make(*args, **kwargs)
                elements.append(_addresses(made))
                return made

            return call

        monkeypatch.setattr(builder, "create_masked_load", checked_load)
        monkeypatch.setattr(F, "linear", recorded(F.linear))
        monkeypatch.setattr(torch.Tensor, "new_empty", recorded(torch.Tensor.new_empty))

    return watch


def _addresses(tensor: torch.Tensor) -> np.ndarray:
    """Address of every element."""
    offsets = np.zeros(1, dtype=np.uint64)
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        steps = np.arange(size, dtype=np.uint64) * np.uint64(stride * tensor.element_size())
        offsets = (offsets[:, None] + steps).ravel()
    return offsets + np.uint64(tensor.data_ptr())
