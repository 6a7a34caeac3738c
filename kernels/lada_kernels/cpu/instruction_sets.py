"""Instruction sets of the native builds, best first.

No imports but the standard library: `setup.py` runs this file before anything is installed.
"""

from typing import NamedTuple


class InstructionSet(NamedTuple):
    """Target of one build."""

    compiler_flags: tuple[str, ...]  # GCC's
    cpu_flags: frozenset[str]  # flags in /proc/cpuinfo of a CPU that runs the build


_AVX2 = InstructionSet(
    ("-march=x86-64-v3",),
    frozenset({"avx2", "fma", "bmi1", "bmi2", "f16c", "movbe", "abm"}),
)
_AVX512 = InstructionSet(
    ("-march=x86-64-v4", "-mprefer-vector-width=512"),
    _AVX2.cpu_flags | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
)
_AVX512_BF16 = InstructionSet(
    (*_AVX512.compiler_flags, "-mavx512bf16", "-mavx512vnni"),
    _AVX512.cpu_flags | {"avx512_bf16", "avx512_vnni"},
)
_AMX = InstructionSet(
    (*_AVX512_BF16.compiler_flags, "-mamx-tile", "-mamx-bf16", "-mamx-int8"),
    _AVX512_BF16.cpu_flags | {"amx_tile", "amx_bf16", "amx_int8"},
)
INSTRUCTION_SETS = {
    "amx": _AMX,
    "avx512bf16": _AVX512_BF16,
    "avx512": _AVX512,
    "avx2": _AVX2,
    "portable": InstructionSet((), frozenset()),
}
"""Instruction sets by name, best first."""
WITH_BF16 = ("amx", "avx512bf16")
"""Instruction sets with dot products of bf16 and of int8."""
