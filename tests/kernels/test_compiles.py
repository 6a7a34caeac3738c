"""The interpreter accepts Python that the compiler rejects, and hides what makes a kernel slow.

So every kernel is compiled as its launcher would launch it, at the shapes of BERT-base, for targets
that need not be present, and the machine code is read.
"""

import functools
import importlib
import os
import re

import pytest
import torch

from tests.kernels import aot

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("TRITON_INTERPRET leaves nothing to compile", allow_module_level=True)

NVIDIA = ["sm_80", "sm_90", "sm_100"]
TARGETS = [*NVIDIA, "gfx942"]
FP16, BF16, FP32 = torch.float16, torch.bfloat16, torch.float32

# stem, rows, rank or block shape, dtype, activation
CASES = [
    ("low_rank_linear", 8192, 128, FP16, "gelu"),
    ("low_rank_linear", 8192, 96, BF16, "none"),
    ("low_rank_linear", 8192, 256, BF16, "gelu"),
    ("low_rank_linear", 17, 64, FP16, "silu"),
    ("block_sparse_linear", 8192, (64, 16), FP16, "gelu"),
    ("block_sparse_linear", 8192, (128, 16), BF16, "gelu_tanh"),
    ("block_sparse_linear", 512, (64, 64), BF16, "none"),
    ("block_sparse_linear", 512, (16, 16), FP16, "relu"),
    ("sparse_low_rank_linear", 8192, (128, 16), FP16, "gelu"),
    ("sparse_low_rank_linear", 8192, (64, 32), BF16, "gelu"),
    ("sparse_low_rank_linear", 17, (32, 32), FP16, "tanh"),
]
FP32_CASES = [
    ("low_rank_linear", 8192, 256, FP32, "gelu"),
    ("block_sparse_linear", 8192, (64, 16), FP32, "gelu"),
    ("sparse_low_rank_linear", 8192, (32, 64), FP32, "none"),
]


def case_id(value):
    return str(value).removeprefix("torch.").replace(" ", "").strip("()").replace(",", "x")


def operands(stem, m, size, dtype, n=3072, k=768):
    """Arguments of the launcher of `stem`, without memory."""
    meta = functools.partial(torch.empty, device="meta", dtype=dtype)
    index = functools.partial(torch.empty, device="meta", dtype=torch.int32)
    x, bias, residual = meta(m, k), meta(n), meta(m, n)
    rank, (rows, cols) = (64, size) if isinstance(size, tuple) else (size, (16, 16))
    factors = (meta(n, rank), meta(rank, k))
    if stem == "low_rank_linear":
        return x, *factors, bias, residual
    bsr = (index(n // rows + 1), index(500), meta(500, cols, rows).transpose(1, 2))
    return x, *(factors if stem == "sparse_low_rank_linear" else ()), *bsr, bias, residual


@functools.cache
def binary(stem, m, size, dtype, activation, target):
    module = importlib.import_module(f"lada_kernels.{stem}")
    name = f"_{stem}_fwd_kernel"
    kernel, launch = getattr(module, name), aot.Recorder()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_ALWAYS_COMPILE", "1")  # a cached binary would hide a failure
        patch.setattr(module, name, launch)
        args = operands(stem, m, size, dtype)
        getattr(module, f"{stem}_fwd")(*args, activation=activation)
        return aot.compile_launch(kernel, launch, target)


def every_case(test):
    test = pytest.mark.parametrize(
        ("stem", "m", "size", "dtype", "activation"), CASES, ids=case_id
    )(test)
    return pytest.mark.parametrize("target", TARGETS)(test)


@every_case
def test_uses_tensor_cores(stem, m, size, dtype, activation, target):
    assert binary(stem, m, size, dtype, activation, target).tensor_cores


@every_case
def test_does_not_spill(stem, m, size, dtype, activation, target):
    assert binary(stem, m, size, dtype, activation, target).spills == 0


@every_case
def test_fits_shared_memory(stem, m, size, dtype, activation, target):
    used = binary(stem, m, size, dtype, activation, target).shared
    assert used <= aot.SHARED_LIMIT[target] * 1024


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("stem", "m", "size", "dtype", "activation"), FP32_CASES, ids=case_id)
def test_fits_shared_memory_in_fp32(stem, m, size, dtype, activation, target):
    used = binary(stem, m, size, dtype, activation, target).shared
    assert used <= aot.SHARED_LIMIT[target] * 1024


@pytest.mark.parametrize("target", NVIDIA)
@pytest.mark.parametrize(("stem", "m", "size", "dtype", "activation"), CASES, ids=case_id)
def test_copies_16_bytes_at_a_time(stem, m, size, dtype, activation, target):
    """Where Triton loses sight of the runs in a gather, it falls back to loads of one element."""
    sass = binary(stem, m, size, dtype, activation, target).sass
    assert set(re.findall(r"LDGSTS\S*?\.(\d+)\b", sass)) == {"128"}
    assert "LDG.E.U16" not in sass
