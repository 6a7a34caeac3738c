"""What a measurement ran on: software, CPU and GPU, and nothing that tells whose machine it is."""

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
    """A fingerprint for result files; JSON values only, None for what is not there.

    Holds versions, operating system and architecture, CPU model, its logical cores, its largest
    instruction set that torch or our kernels use and torch's intra-op threads, and the current GPU
    with driver and CUDA version. No host or user name, no path.
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
    """The device's model as a file name: ``NVIDIA_H200``, ``AMD_EPYC``.

    device: by default the current GPU where there is one, else the CPU.
    """
    from lada_kernels.devices import slug

    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(device)
    return slug(torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_model())


def _cpu_instruction_set() -> str:
    from lada_kernels.cpu import native

    # torch does not count the matrix unit, but uses it
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
    """torch knows the CUDA version a driver supports, not the driver's own; asking takes long."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return None
    query = [command, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.splitlines()[0].strip() if answer.stdout else None
