"""Loader of the native libraries: one build per instruction set, all from the same source.

The best build that this machine runs is loaded on first use. Without one, callers run in plain
torch.
"""

from __future__ import annotations

import ctypes
import functools
import os
import warnings
from collections.abc import Sequence
from ctypes import c_int64, c_void_p
from pathlib import Path

import numpy as np
import torch

from . import abi
from .instruction_sets import INSTRUCTION_SETS

FOLDER = Path(__file__).parent
"""Folder of the builds."""


def library_path(instruction_set: str) -> Path | None:
    """File of one build, or None where it was not built."""
    found = sorted(FOLDER.glob(f"_{instruction_set}.*so"))
    return found[0] if found else None


def supported(instruction_set: str) -> bool:
    """True if this machine runs that build."""
    needed = INSTRUCTION_SETS[instruction_set].cpu_flags
    return needed <= _cpu_flags() and ("amx_tile" not in needed or _amx_permitted())


def load(instruction_set: str) -> ctypes.CDLL:
    """Functions of one build, with their argument types.

    Raises OSError where it was not built or does not load.
    """
    path = library_path(instruction_set)
    if path is None:
        raise OSError(f"no native library for {instruction_set}: it was not built")
    return abi.declare(ctypes.CDLL(str(path)))


class Regions:
    """Memory regions and the arrays whose bytes they are compared with.

    addresses: first byte of each region; a region is as long as its array, and must outlive every
    call of `equal`.
    """

    def __init__(self, addresses: Sequence[int], arrays: Sequence[np.ndarray]) -> None:
        count = len(addresses)
        self._arrays = arrays  # keeps alive what the pointers refer to
        self._call = functools.partial(
            library().lada_equal,
            count,
            (c_void_p * count)(*addresses),
            (c_void_p * count)(*(array.ctypes.data for array in arrays)),
            (c_int64 * count)(*(array.nbytes for array in arrays)),
        )

    def equal(self) -> bool:
        """True if each region holds the bytes of its array."""
        return bool(self._call())


def library() -> ctypes.CDLL:
    """Functions of the best build for this machine.

    Raises RuntimeError where there is none; `best` tells beforehand.
    """
    loaded = best()
    if loaded is None:
        raise RuntimeError("lada_kernels.cpu: no native library for this machine")
    return loaded[1]


@functools.cache
def best() -> tuple[str, ctypes.CDLL] | None:
    """Name of the best instruction set that was built and runs here, and the build's functions.

    None, with one warning that gives the reasons, where there is none.
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
    """Number of threads of a call: torch's, or 1 in a forked child."""
    return 1 if _forked else torch.get_num_threads()


_forked = False


def _after_fork() -> None:
    global _forked
    _forked = True  # OpenMP threads do not survive fork; waiting for them would deadlock


os.register_at_fork(after_in_child=_after_fork)


@functools.cache
def _amx_permitted() -> bool:
    """True if Linux permits this process the AMX tile state, which must be requested."""
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
