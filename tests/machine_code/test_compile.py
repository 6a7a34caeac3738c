import pytest
import torch
import triton
import triton.language as tl

from lada_ops.machine_code.compile import CompileError, compile_launch
from lada_ops.machine_code.launches import recorded
from lada_ops.machine_code.targets import TARGETS


@triton.jit
def _product_kernel(x_ptr, y_ptr, SIZE: tl.constexpr):
    rows = tl.arange(0, SIZE)[:, None]
    cols = tl.arange(0, SIZE)[None, :]
    x = tl.load(x_ptr + rows * SIZE + cols)
    y = tl.dot(x, x)
    tl.store(y_ptr + rows * SIZE + cols, y.to(tl.bfloat16))


@triton.jit
def _refused_kernel(x_ptr, y_ptr, SIZE: tl.constexpr):
    tl.static_assert(SIZE < 0, "never so small")


def compiled(kernel, target, size=64, warps=4):
    x = torch.empty(size, size, device="meta", dtype=torch.bfloat16)
    with recorded() as launches:
        kernel[(1,)](x, x, SIZE=size, num_warps=warps)
    return compile_launch(launches[0], TARGETS[target])


@pytest.mark.parametrize("target", TARGETS)
def test_a_binary_has_its_targets_figures(target):
    binary = compiled(_product_kernel, target)
    assert binary.tensor_cores
    assert 16 <= binary.registers <= 256
    assert binary.spills == 0
    assert binary.shared > 0
    assert binary.threads == (256 if target == "gfx942" else 128)
    assert (binary.code is None) is (target == "gfx942")


def test_machine_code_is_parsed():
    binary = compiled(_product_kernel, "sm_90")
    assert binary.code is not None
    assert binary.code.count("HGMMA") == 4  # 64 deep, 16 at a time
    assert binary.code.stored_bytes == 64 * 64 * 2 // 128


def test_spills_are_counted():
    assert compiled(_product_kernel, "sm_90", size=128, warps=1).spills > 256


def test_a_kernel_that_does_not_compile_says_why(capfd):
    with pytest.raises(CompileError, match=r"(?s)_refused_kernel for sm_90: .*never so small"):
        compiled(_refused_kernel, "sm_90")
    assert capfd.readouterr().out == ""


def test_tritons_cache_is_bypassed():
    """Regression: binaries from Triton's cache lack the log of ptxas, and so the registers."""
    first = compiled(_product_kernel, "sm_90")
    compile_launch.cache_clear()
    assert compiled(_product_kernel, "sm_90") == first


def test_equal_launches_are_compiled_once():
    assert compiled(_product_kernel, "sm_90") is compiled(_product_kernel, "sm_90")
