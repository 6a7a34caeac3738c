"""Faults found in machine code that has nothing else wrong."""

import re
from dataclasses import replace

import pytest

from lada_ops.machine_code.compile import Binary
from lada_ops.machine_code.gate import Limits, faults
from lada_ops.machine_code.sass import Code
from lada_ops.machine_code.targets import TARGETS

LOOP = (
    *("WARPGROUP.ARRIVE", "HGMMA.64x64x16.F32.BF16", "HGMMA.64x64x16.F32.BF16"),
    *("WARPGROUP.DEPBAR.LE", "LDGSTS.E.BYPASS.128", "BRA"),
)
TAIL = ("FADD", "STG.E.128", "EXIT", "BRA")


def code(loop=LOOP, tail=TAIL):
    return Code(loop + tail, ((0, len(loop)),))


def without(opcode):
    return tuple(o for o in LOOP if not o.startswith(opcode))


GOOD = Binary(
    target=TARGETS["sm_90"],
    threads=128,
    itemsize=2,
    registers=128,
    spills=0,
    shared=72 * 1024,
    tensor_cores=True,
    warnings=(),
    code=code(),
)
LIMITS = Limits(occupancy=3, issue_per_tensor=0.1, instructions_per_element=0.5)


def test_good_code_passes():
    assert GOOD.occupancy == 3
    assert GOOD.issue_per_tensor == 6 / 64  # six instructions, two products of 32 cycles
    assert GOOD.instructions_per_element == 4 / 8
    assert faults(GOOD, LIMITS) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spills": 8}, "registers spill: 8 bytes"),
        ({"shared": 228 * 1024}, "228 KiB of shared memory; sm_90 has 227"),
        ({"tensor_cores": False}, "no tensor-core instruction"),
        ({"warnings": ("ptxas info : (C7510) serialized",)}, "ptxas warns: .*C7510"),
        ({"code": code(without("HGMMA") + ("HMMA.16816.F32",))}, "no HGMMA in an inner loop"),
        ({"code": code(without("HGMMA"))}, "no tensor-core instruction in an inner loop"),
        ({"code": code(LOOP + ("WARPGROUP.DEPBAR.LE",))}, "wgmma is serialised"),
        ({"code": code(without("LDGSTS"))}, "no async copy in an inner loop"),
        ({"code": code(LOOP + ("LDGSTS.E",))}, "async copies of 32 bits; expected 64"),
        ({"code": code(LOOP + ("LDG.E",) * 5)}, "5 synchronous loads in a K loop; expected 4"),
        ({"code": code(LOOP + ("STS.128",))}, "1 copies to shared memory in a K loop; expected 0"),
    ],
)
def test_faults_of_any_launch_are_found(changes, message):
    got = faults(replace(GOOD, **changes))
    assert any(re.match(message, fault) for fault in got), got


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"registers": 176}, "occupancy 2; expected 3 or more"),
        ({"code": code(LOOP + ("IADD3",))}, "issue per tensor 0.11; expected 0.1 or less"),
        ({"code": code(tail=(*TAIL, "FADD"))}, "instructions per element 0.62; expected 0.5"),
        ({"code": code(tail=("EXIT",))}, "instructions per element unknown"),
    ],
)
def test_a_launch_must_meet_its_own_limits(changes, message):
    binary = replace(GOOD, **changes)
    assert faults(binary) == []
    (fault,) = faults(binary, LIMITS)
    assert fault.startswith(message)


@pytest.mark.parametrize(
    "changes",
    [
        {"warnings": ("ptxas info : (C7519) potential",)},
        {"code": code(LOOP + ("LDG.E",) * 4)},
        {"code": code(without("HGMMA.64") + ("HGMMA.64x64x16.F32",))},  # one, with a pair of waits
    ],
)
def test_harmless_code_passes(changes):
    assert faults(replace(GOOD, **changes)) == []


@pytest.mark.parametrize(
    ("loop", "limits", "message"),
    [
        (LOOP + ("LDGSTS.E.64",), Limits(copy_bits=128), "async copies of 64 bits; expected 128"),
        (LOOP + ("LDG.E",) * 5, Limits(synchronous_loads=3), "5 synchronous loads in a K loop"),
        (LOOP + ("STSM.16",) * 2, Limits(shared_stores=1), "2 copies to shared memory"),
    ],
)
def test_limits_of_a_design_are_applied(loop, limits, message):
    (fault,) = faults(replace(GOOD, code=code(loop)), limits)
    assert fault.startswith(message)


def test_loops_that_reduce_rows_may_use_shared_memory():
    rows = ("HGMMA.64x64x16.F32.BF16", "LDGSTS.E.128", "SHFL.BFLY", "STS.128", "BRA")
    both = Code(LOOP + rows + TAIL, ((0, len(LOOP)), (len(LOOP), len(LOOP + rows))))
    assert faults(replace(GOOD, code=both)) == []


def test_small_tiles_need_no_wgmma():
    binary = replace(GOOD, code=code(without("HGMMA") + ("HMMA.16816.F32",)))
    assert faults(binary, Limits(wgmma=False)) == []


def test_fp32_needs_no_tensor_cores():
    binary = replace(GOOD, code=code(without("HGMMA")), tensor_cores=False)
    assert faults(binary, Limits(tensor_cores=False)) == []


@pytest.mark.parametrize(
    ("target", "spills", "want"),
    [
        ("sm_80", 16, []),
        ("sm_80", 24, ["registers spill: 24 bytes"]),
        ("gfx942", 1, ["registers spill: 1"]),
    ],
)
def test_other_targets_tolerate_few_spills(target, spills, want):
    assert faults(replace(GOOD, target=TARGETS[target], shared=0, spills=spills)) == want


def test_the_last_three_limits_are_for_sm_90_alone():
    binary = replace(GOOD, target=TARGETS["sm_80"], registers=255)
    assert faults(binary, LIMITS) == []


def test_shared_memory_is_limited_by_the_target():
    binary = replace(GOOD, target=TARGETS["sm_86"], shared=100 * 1024)
    assert faults(binary) == ["100 KiB of shared memory; sm_86 has 99"]
