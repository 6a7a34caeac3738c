"""Environment of a measurement: software, CPU and GPU, nothing that identifies the owner."""

from __future__ import annotations

import functools
import os
import platform
import re
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "triton", "transformers", "numpy")


def environment() -> dict[str, Any]:
    """Fingerprint of the machine for result files, in JSON values; None for what is missing.

    Versions of Python and packages, operating system, CPU model, logical cores, the largest CPU
    instruction set that torch or our kernels use, torch's intra-op threads, and the current GPU
    with its driver and CUDA version. No host name, user name or path.
    """
    cuda = torch.cuda.is_available()
    return {
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
        "os": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_model(),
        "cpu_logical_cores": os.cpu_count(),
        "cpu_instruction_set": _cpu_instruction_set(),
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "gpu_driver": _gpu_driver() if cuda else None,
        "cuda": torch.version.cuda if cuda else None,
    }


def device_slug(device: torch.device | str | None = None) -> str:
    """Name of the device's model as a file name: ``NVIDIA_H200``, ``AMD_EPYC``.

    device: by default the current GPU where there is one, else the CPU.
    """
    from lada_kernels.devices import slug

    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(device)
    return slug(torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_model())


def _cpu_instruction_set() -> str:
    from lada_kernels.cpu import native

    # torch uses AMX but does not report it as a capability
    return "AMX" if native.supported("amx") else torch.backends.cpu.get_cpu_capability()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    match = re.search(r"^model name\s*:\s*(.+)$", text, flags=re.MULTILINE)
    return match[1].strip() if match else platform.processor() or platform.machine()


@functools.cache
def _gpu_driver() -> str | None:
    """Version of the GPU driver, by nvidia-smi, which is slow; torch only knows CUDA's version."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return None
    query = [command, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        output = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return output.stdout.splitlines()[0].strip() if output.stdout else None
