from typing import Any

import pytest
import torch
import triton
import triton.language as tl

from lada_ops.machine_code.launches import recorded


@triton.jit
def _copy(x_ptr, bias_ptr, y_ptr, n, eps, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offs, mask=offs < n, other=0.0)
    tl.store(y_ptr + offs, x + eps, mask=offs < n)


_copy_kernel: Any = _copy  # whose launch type checkers read as a call


def launch(n, bias=None, eps=1e-5, block=16, dtype=torch.bfloat16, **options):
    x = torch.empty(max(n, 1), device="meta", dtype=dtype)
    with recorded() as launches:
        _copy_kernel[(1,)](x, bias, x, n, eps, BLOCK=block, **options)
    (only,) = launches
    return only


def test_types_are_those_of_tritons_runtime():
    types = dict(launch(48).signature)
    assert types["x_ptr"] == "*bf16"
    assert types["n"] == "i32"
    assert types["eps"] == "fp32"
    assert dict(launch(2**31).signature)["n"] == "i64"


def test_constants_are_compiled_in():
    assert dict(launch(48).constants) == {"bias_ptr": None, "BLOCK": 16}


def test_one_is_a_constant():
    assert dict(launch(1).constants)["n"] == 1


@pytest.mark.parametrize(("n", "is_multiple"), [(48, True), (40, False)])
def test_multiples_of_16_are_marked(n, is_multiple):
    assert (3 in launch(n).divisible) is is_multiple


def test_misaligned_operand_is_not_marked():
    buffer = torch.zeros(17, dtype=torch.bfloat16)
    with recorded() as launches:
        _copy_kernel[(1,)](buffer[1:], None, buffer, 16, 0.5, BLOCK=16)
    assert 0 not in launches[0].divisible
    assert 2 in launches[0].divisible


def test_options_are_kept_apart_from_arguments():
    got = launch(48, num_warps=2, num_stages=3, launch_pdl=True)
    assert dict(got.options) == {"num_warps": 2, "num_stages": 3, "launch_pdl": True}


def test_equal_launches_are_equal():
    assert launch(48) == launch(64)
    assert len({launch(48), launch(64), launch(40)}) == 2


def test_itemsize_is_that_of_the_output():
    assert launch(48).itemsize == 2
    assert launch(48, dtype=torch.float32).itemsize == 4


def test_kernels_do_not_run():
    y = torch.zeros(16)
    with recorded():
        _copy_kernel[(1,)](y, None, y, 16, 1.0, BLOCK=16)
    assert (y == 0).all()


def test_kernels_run_again_after_an_error():
    run = triton.JITFunction.run

    def fail():
        with recorded():
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert triton.JITFunction.run is run
