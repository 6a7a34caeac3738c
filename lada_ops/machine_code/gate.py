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

# Bytes: to fit one more program, ptxas parks up to four registers and reads them once, or once a
# turn of a long loop. Which kernels it does that to varies with its version, not with the kernels.
_PARKED = 16


@dataclass(frozen=True)
class Limits:
    """What the machine code of one launch must hold to beside what holds for all.

    The last three are figures of sm_90, which the kernels are tuned for; others ignore them.
    """

    tensor_cores: bool = True
    """Whether products run on tensor cores; fp32 ones do not."""
    wgmma: bool = True
    """Whether they are a warpgroup's on sm_90, as tiles of 64 rows or more allow."""
    copy_bits: int = 64
    """Narrowest async copy of a thread: 128, or 64 where a tile has no more for each."""
    synchronous_loads: int = 4
    """Most loads from global memory in a K loop: indices fetched a step ahead, no operand."""
    shared_stores: int = 0
    """Most copies from registers to shared memory in a K loop."""
    occupancy: int = 1
    """Fewest programs that a multiprocessor holds at once."""
    issue_per_tensor: float = inf
    """Largest `Binary.issue_per_tensor`."""
    instructions_per_element: float = inf
    """Largest `Binary.instructions_per_element`."""


def faults(binary: Binary, limits: Limits = Limits()) -> list[str]:
    """What is wrong with the machine code, in words; empty if it passes."""
    target, found = binary.target, []
    hopper = target.name == "sm_90"
    if binary.spills > (0 if hopper or target.is_amd else _PARKED):
        found.append(f"registers spill: {binary.spills} {'' if target.is_amd else 'bytes'}".strip())
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
    if hopper:
        found += _declared_faults(binary, limits)
    if binary.code is not None and limits.tensor_cores:
        found += _loop_faults(binary.code, limits, wgmma=hopper and limits.wgmma)
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


def _loop_faults(code: Code, limits: Limits, wgmma: bool) -> list[str]:
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
        if narrow := {bits for bits in loop.copy_bits if bits < limits.copy_bits}:
            found.append(f"async copies of {min(narrow)} bits; expected {limits.copy_bits}")
    for loop in code.reductions:
        for what, count, most in (
            ("synchronous loads", loop.count("LDG"), limits.synchronous_loads),
            ("copies to shared memory", loop.count("STS", "STSM"), limits.shared_stores),
        ):
            if count > most:
                found.append(f"{count} {what} in a K loop; expected {most} or less")
    return found
