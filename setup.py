import os
import platform
import runpy
import sys
from pathlib import Path

from setuptools import Extension, setup

NATIVE = Path("kernels/lada_kernels/cpu")
INSTRUCTION_SETS = runpy.run_path(str(NATIVE / "instruction_sets.py"))["INSTRUCTION_SETS"]


def native_library(instruction_set: str, flags: tuple[str, ...]) -> Extension:
    """Library with a plain C interface, loaded by ctypes; optional, since it needs a compiler.

    It is not linked against OpenMP: it finds torch's, so that there is one pool of threads.
    """
    return Extension(
        f"lada_kernels.cpu._{instruction_set}",
        sources=[str(NATIVE / "abi.cpp")],
        depends=[str(header) for header in sorted(NATIVE.glob("*.h"))],
        language="c++",
        extra_compile_args=[
            *("-std=c++17", "-O3", "-g0", "-fopenmp", "-fvisibility=hidden", "-fno-math-errno"),
            *("-ffp-contract=fast", "-Wno-psabi", *flags),
            *os.environ.get("LADA_NATIVE_FLAGS", "").split(),
        ],
        py_limited_api=True,
        optional=True,
    )


def native_libraries() -> list[Extension]:
    if not sys.platform.startswith("linux"):
        return []
    names = list(INSTRUCTION_SETS) if platform.machine() == "x86_64" else ["portable"]
    return [native_library(name, INSTRUCTION_SETS[name].compiler_flags) for name in names]


# `kernels/` is a source root, not a package: Hugging Face ships an import package named `kernels`
# that transformers probes for, so ours must never be importable under that name. `lada_ops/cli/` is
# a source root, too: importing a module of lada_ops loads torch and transformers, which takes
# seconds, and `lada --help` must not wait for that.
setup(
    package_dir={
        "lada_cli": "lada_ops/cli/lada_cli",
        "lada_kernels": "kernels/lada_kernels",
        "lada_ops": "lada_ops",
    },
    packages=[
        "lada_cli",
        "lada_kernels",
        "lada_kernels.cpu",
        "lada_ops",
        "lada_ops.approximation",
        "lada_ops.architectures",
        "lada_ops.compression",
        "lada_ops.data",
        "lada_ops.distill",
        "lada_ops.engine",
        "lada_ops.engine.cpu",
        "lada_ops.engine.gpu",
        "lada_ops.evaluate",
        "lada_ops.formats",
        "lada_ops.host",
        "lada_ops.latency",
        "lada_ops.machine_code",
        "lada_ops.modules",
        "lada_ops.ops",
        "lada_ops.tune",
    ],
    package_data={
        "lada_cli": ["py.typed"],
        "lada_ops": ["py.typed"],
        "lada_kernels": ["py.typed", "configs/*/*.json", "cpu/*.h", "cpu/*.cpp"],
    },
    ext_modules=native_libraries(),
    options={"bdist_wheel": {"py_limited_api": "cp310"}},  # the libraries do not call Python
)
