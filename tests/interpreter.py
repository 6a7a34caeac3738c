"""Kernels that run without a GPU, in Triton's interpreter."""

import importlib
import sys
from collections.abc import Mapping
from types import SimpleNamespace

import numpy as np
import pytest


def _python_modules(*packages: str) -> list[str]:
    """Imported modules of `packages`, compiled extensions aside: those cannot be loaded twice."""
    return [
        name
        for name in sys.modules
        if name.split(".")[0] in packages and not name.startswith("triton._C")
    ]


def interpreted(modules: Mapping[str, str]) -> SimpleNamespace:
    """A second copy of Triton, and of modules and our kernels, imported in interpreter mode.

    Triton decides at decoration, so one copy cannot both interpret and compile. It is hidden again.

    modules: by the name that they have in the result, where to import them from.
    """
    import triton  # noqa: F401  the first copy, if nobody has imported it yet

    copied = "triton", "lada_kernels", "benchmarks"
    first = {n: sys.modules.pop(n) for n in _python_modules(*copied)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        copy = {name: importlib.import_module(path) for name, path in modules.items()}
        importlib.import_module("triton.runtime.interpreter")
        namespace = SimpleNamespace(**copy, triton=sys.modules["triton"])
    for name in _python_modules(*copied):
        del sys.modules[name]
    sys.modules.update(first)
    version = namespace.triton.__version__
    if version.startswith("3.6.") and np.lib.NumpyVersion(np.__version__) >= "2.4.0":
        pytest.skip("the interpreter of Triton 3.6 cannot loop with numpy 2.4 or later")
    return namespace
