"""The native library: which instruction set this machine has, and the functions of its build.

One library is built per instruction set, each from the same source; the best that the machine runs
is loaded on first use. Without one, callers run in plain torch.
"""

from __future__ import annotations

import ctypes
import functools
import os
import warnings
from collections.abc import Sequence
from ctypes import POINTER, Structure, c_float, c_int, c_int32, c_int64, c_void_p
from pathlib import Path

import numpy as np
import torch

# what the compiler may use beyond the baseline, as /proc/cpuinfo calls it
_AVX2 = {"avx2", "fma", "bmi1", "bmi2", "f16c", "movbe", "abm"}
_AVX512 = _AVX2 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
_AVX512_BF16 = _AVX512 | {"avx512_bf16", "avx512_vnni"}
INSTRUCTION_SETS = {
    "amx": _AVX512_BF16 | {"amx_tile", "amx_bf16", "amx_int8"},
    "avx512bf16": _AVX512_BF16,
    "avx512": _AVX512,
    "avx2": _AVX2,
    "portable": set(),
}
"""Best first."""
WITH_BF16 = ("amx", "avx512bf16")
"""Those with instructions for products of bf16, and of int8."""

FOLDER = Path(__file__).parent
"""Where the builds are."""

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}
"""Of weights; int8 ones take x and give y in fp32."""
ACTIVATIONS = {"none": 0, "relu": 1, "gelu": 2, "gelu_tanh": 3, "silu": 4, "tanh": 5}


class Stripes(Structure):
    _fields_ = [
        ("weights", c_void_p),
        ("first", c_void_p),
        ("runs", c_void_p),
        ("starts", c_void_p),
        ("lengths", c_void_p),
        ("scales", c_void_p),
        ("offsets", c_void_p),
        ("count", c_int32),
        ("width", c_int32),
        ("rest", c_int32),
    ]


class Linear(Structure):
    _fields_ = [
        ("down", Stripes),
        ("up", Stripes),
        ("bias", c_void_p),
        ("in_features", c_int64),
        ("out_features", c_int64),
        ("activation", c_int32),
    ]


class Norm(Structure):
    _fields_ = [("weight", c_void_p), ("bias", c_void_p), ("eps", c_float)]


class Layer(Structure):
    _fields_ = [
        ("qkv", Linear),
        ("out", Linear),
        ("up", Linear),
        ("down", Linear),
        ("input_norm", Norm),
        ("attention_norm", Norm),
        ("output_norm", Norm),
        ("angles", c_void_p),
        ("window", c_int64),
        ("gate", c_int32),
    ]


class Encoder(Structure):
    _fields_ = [
        ("layers", POINTER(Layer)),
        ("count", c_int32),
        ("heads", c_int32),
        ("norms_first", c_int32),
        ("features", c_int64),
        ("scale", c_float),
        ("bias", c_void_p),
        ("reach", c_int64),
    ]


def library_path(instruction_set: str) -> Path | None:
    """The file of one build, or None where it was not built."""
    found = sorted(FOLDER.glob(f"_{instruction_set}.*so"))
    return found[0] if found else None


def supported(instruction_set: str) -> bool:
    """Whether this machine runs that build."""
    needed = INSTRUCTION_SETS[instruction_set]
    return needed <= _cpu_flags() and ("amx_tile" not in needed or _tiles_allowed())


def load(instruction_set: str) -> ctypes.CDLL:
    """The functions of one build, with their types.

    Raises OSError where it was not built or does not load.
    """
    path = library_path(instruction_set)
    if path is None:
        raise OSError(f"no native library for {instruction_set}: it was not built")
    library = ctypes.CDLL(str(path))
    pointer, size = c_void_p, c_int64
    library.lada_linear.argtypes = [
        *(c_int, POINTER(Linear), POINTER(Norm), pointer, size, size),
        *(pointer, size, pointer, size, c_int),
    ]
    library.lada_equal.argtypes = [size, pointer, pointer, pointer]
    library.lada_encoder.argtypes = [c_int, POINTER(Encoder), pointer, size, pointer, c_int]
    return library


def norm_struct(norm: tuple[np.ndarray, np.ndarray, float] | None) -> Norm:
    """weight, bias and eps as the library takes them; the arrays must outlive it."""
    if norm is None:
        return Norm(None, None, 0.0)
    return Norm(norm[0].ctypes.data, norm[1].ctypes.data, norm[2])


class Regions:
    """Memory regions, and arrays of the bytes that they are compared with.

    addresses: of regions that are as long as their arrays and stay while `equal` runs.
    """

    def __init__(self, addresses: Sequence[int], arrays: Sequence[np.ndarray]) -> None:
        count = len(addresses)
        self._arrays = arrays  # whose memory is pointed to
        self._call = functools.partial(
            library().lada_equal,
            count,
            (c_void_p * count)(*addresses),
            (c_void_p * count)(*(array.ctypes.data for array in arrays)),
            (c_int64 * count)(*(array.nbytes for array in arrays)),
        )

    def equal(self) -> bool:
        """Whether each region holds the bytes of its array."""
        return bool(self._call())


def library() -> ctypes.CDLL:
    """The best build for this machine.

    Raises RuntimeError where there is none: the caller should have asked `best`.
    """
    found = best()
    if found is None:
        raise RuntimeError("lada_kernels.cpu: no native library for this machine")
    return found[1]


@functools.cache
def best() -> tuple[str, ctypes.CDLL] | None:
    """The best instruction set that was built and runs here, and its functions.

    None, with one warning that says why, where there is none.
    """
    reasons = []
    for name in INSTRUCTION_SETS:
        if not supported(name):
            continue
        try:
            return name, load(name)
        except OSError as error:
            reasons.append(str(error))
    warnings.warn(
        "lada_kernels: no native CPU kernels, layers run in plain torch and are slower. "
        "They are built at installation where GCC 12 or newer is there on Linux: "
        f"{'; '.join(reasons)}",
        stacklevel=2,
    )
    return None


def threads() -> int:
    """How many threads a call may use: torch's count."""
    return 1 if _forked else torch.get_num_threads()


_forked = False


def _after_fork() -> None:
    global _forked
    _forked = True  # the pool's threads are gone, and to wait for them would be for ever


os.register_at_fork(after_in_child=_after_fork)


@functools.cache
def _tiles_allowed() -> bool:
    """Whether Linux lets this process use the matrix unit, for which it must be asked."""
    arch_prctl, request_permission, tile_data = 158, 0x1023, 18  # of x86-64; <asm/prctl.h>
    return ctypes.CDLL(None).syscall(arch_prctl, request_permission, tile_data) == 0


@functools.cache
def _cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    flags = (line.partition(":")[2] for line in lines if line.startswith("flags"))
    return set(next(flags, "").split())
