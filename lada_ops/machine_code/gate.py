"""What machine code must hold to: the cliffs that make a correct kernel slow, found without a GPU.

The gate sees spills, gathers that fall apart, serialised tensor cores and costly epilogues. It can
neither rank two good kernels nor see caches, bank conflicts or races.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import inf

from .compile import Binary
from .sass import Code

_SYNCHRONOUS_LOADS = 4  # of a K loop: an index fetched a step ahead, never an operand


@dataclass(frozen=True)
class Limits:
    """What the machine code of one launch must hold to beside what holds for all.

    Numbers are of sm_90, the architecture that the kernels are tuned for; others ignore them.
    """

    tensor_cores: bool = True
    """Whether products run on tensor cores; fp32 ones do not."""
    wgmma: bool = True
    """Whether they are a warpgroup's on sm_90, as tiles of 64 rows or more allow."""
    occupancy: int = 1
    """Fewest programs that a multiprocessor holds at once."""
    issue_per_tensor: float = inf
    """Largest `Binary.issue_per_tensor`."""
    instructions_per_element: float = inf
    """Largest `Binary.instructions_per_element`."""


def faults(binary: Binary, limits: Limits = Limits()) -> list[str]:
    """What is wrong with the machine code, in words; empty if it passes."""
    target, found = binary.target, []
    if binary.spills:
        found.append(f"registers spill: {binary.spills} bytes of stack and accesses to it")
    if binary.shared > target.shared_kib * 1024:
        used = f"{binary.shared / 1024:.0f} KiB of shared memory"
        found.append(f"{used}; {target.name} has {target.shared_kib}")
    if limits.tensor_cores and not binary.tensor_cores:
        found.append("no tensor-core instruction")
    found += [
        f"ptxas warns: {line}"
        for line in binary.warnings
        if re.search(r"C75\d\d", line) and "C7519" not in line
    ]
    hopper = target.name == "sm_90"
    if hopper:
        found += _declared_faults(binary, limits)
    if binary.code is not None and limits.tensor_cores:
        found += _loop_faults(binary.code, wgmma=hopper and limits.wgmma)
    return found


def _declared_faults(binary: Binary, limits: Limits) -> list[str]:
    found = []
    if binary.occupancy < limits.occupancy:
        found.append(f"occupancy {binary.occupancy}; expected {limits.occupancy} or more")
    for name in ("issue_per_tensor", "instructions_per_element"):
        value, most = getattr(binary, name), getattr(limits, name)
        if most < inf and (value is None or value > most):
            got = "unknown" if value is None else f"{value:.2f}"
            found.append(f"{name.replace('_', ' ')} {got}; expected {most} or less")
    return found


def _loop_faults(code: Code, wgmma: bool) -> list[str]:
    found = []
    if not code.tensor_loops:
        found.append("no tensor-core instruction in an inner loop")
    for loop in code.tensor_loops:
        products = loop.count("HGMMA")
        if wgmma and not products:
            found.append("no HGMMA in an inner loop of products")
        # one pair of arrival and wait is enough for any number
        if products and loop.count("WARPGROUP") > max(2, products):
            found.append("wgmma is serialised: a wait for each")
        if not loop.async_copies:
            found.append("no async copy in an inner loop: loads are not pipelined")
        if loop.copy_bits - {128}:
            found.append(f"async copies of {sorted(loop.copy_bits)} bits; expected 128")
    loop = code.reduction
    if loop is not None:
        if (loads := loop.count("LDG")) > _SYNCHRONOUS_LOADS:
            found.append(f"{loads} synchronous loads in the K loop; expected {_SYNCHRONOUS_LOADS}")
        if stores := loop.count("STS", "STSM"):
            found.append(f"{stores} copies from registers to shared memory in the K loop")
    return found
