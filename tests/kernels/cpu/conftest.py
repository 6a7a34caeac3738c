"""Fixtures: every native build that this machine runs, and every weight dtype."""

import ctypes
import os
from pathlib import Path

import pytest
import torch

from lada_kernels.cpu import abi, native
from lada_kernels.cpu.instruction_sets import INSTRUCTION_SETS
from lada_kernels.cpu.linear import packed_linear_fwd
from lada_kernels.cpu.packing import Weight, pack

SANITIZED = os.environ.get("LADA_SANITIZED")  # a folder of builds by `make test-sanitized`


BEST = next(filter(native.supported, INSTRUCTION_SETS))
BUILDS = [
    pytest.param(name, marks=[] if name == BEST else pytest.mark.exhaustive)
    for name in INSTRUCTION_SETS
]


@pytest.fixture(scope="session", params=BUILDS)
def library(request) -> ctypes.CDLL:
    if not native.supported(request.param):
        pytest.skip(f"this CPU does not run {request.param}")
    with pytest.MonkeyPatch.context() as patch:
        if SANITIZED:
            patch.setattr(native, "FOLDER", Path(SANITIZED) / "lada_kernels/cpu")
        elif native.library_path(request.param) is None:
            pytest.skip(f"{request.param} was not built")
        return native.load(request.param)


@pytest.fixture(params=abi.DTYPES, ids=str)
def dtype(request) -> torch.dtype:
    return request.param


@pytest.fixture(autouse=True)
def _seed_and_threads():
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def poisoned_workspace(library):
    """Scratch memory of this thread filled with NaN, which unwritten elements would bring in."""
    weight = pack([Weight(32, 8192, sparse=torch.ones(32, 8192))], [None], torch.float32)
    packed_linear_fwd(weight, torch.full((32, 8192), torch.nan), library=library)


@pytest.fixture
def poisoned_outputs(monkeypatch):
    """Outputs that start as NaN between two fences: unwritten or overrun ones fail the test."""
    new_empty, buffers, pad = torch.Tensor.new_empty, [], 256

    def poisoned(self, *size, **kwargs):
        shape = torch.Size(size)
        buffer = new_empty(self, pad + shape.numel() + pad, **kwargs).fill_(77)
        buffers.append(buffer)
        return buffer[pad : pad + shape.numel()].view(shape).fill_(float("nan"))

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)
    yield
    for buffer in buffers:
        assert (buffer[:pad] == 77).all(), "wrote before the output"
        assert (buffer[-pad:] == 77).all(), "wrote past the output"
