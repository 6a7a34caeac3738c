"""Static gate: faults in machine code that make a correct kernel slow, found without a GPU.

The gate sees spills, scalar gathers, serialised tensor cores and costly epilogues. It can neither
rank two good kernels nor see cache misses, bank conflicts or races.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import inf

from .compile import Binary
from .sass import Code

# Bytes of spills that are tolerated but on sm_90: under high register pressure ptxas spills up to
# four registers to fit one more program, and which kernels it does that to varies by its version.
_TOLERATED_SPILLS = 16


@dataclass(frozen=True)
class Limits:
    """Limits of one launch's machine code, beside the checks that hold for every launch.

    The last three apply to sm_90 alone, the target that the kernels are tuned for.
    """

    tensor_cores: bool = True
    """True if products must run on tensor cores, as all but fp32 ones do."""
    wgmma: bool = True
    """True if products must be wgmma on sm_90, which takes tiles of 64 rows or more."""
    copy_bits: int = 64
    """Least bits of a thread's async copy: 128, or 64 where a tile has no more per thread."""
    synchronous_loads: int = 4
    """Most synchronous global loads in a K loop: prefetched indices, no operands."""
    shared_stores: int = 0
    """Most register-to-shared copies in a K loop."""
    occupancy: int = 1
    """Least `Binary.occupancy`."""
    issue_per_tensor: float = inf
    """Most `Binary.issue_per_tensor`."""
    instructions_per_element: float = inf
    """Most `Binary.instructions_per_element`."""


def faults(binary: Binary, limits: Limits = Limits()) -> list[str]:
    """Faults in words, empty if the machine code passes."""
    target, found = binary.target, []
    hopper = target.name == "sm_90"
    if binary.spills > (0 if hopper or target.is_amd else _TOLERATED_SPILLS):
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
        # one arrive and one wait serve any number of products
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
