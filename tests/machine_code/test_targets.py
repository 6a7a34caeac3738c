import pytest

from lada_ops.machine_code.targets import TARGETS, find_target

KIB = 1024


@pytest.mark.parametrize(
    ("name", "registers", "kib", "threads", "occupancy"),
    [  # as NVIDIA's occupancy calculator has it
        ("sm_90", 128, 72, 128, 3),  # shared memory
        ("sm_90", 168, 0, 128, 3),  # registers
        ("sm_90", 161, 0, 128, 3),  # allocated in units of eight
        ("sm_90", 16, 0, 1024, 2),  # threads
        ("sm_90", 16, 0, 32, 32),  # programs
        ("sm_90", 255, 0, 512, 0),
        ("sm_86", 64, 0, 512, 2),
        ("sm_80", 32, 40, 128, 4),
        ("gfx942", 128, 16, 256, 4),
        ("gfx942", 256, 16, 256, 2),
        ("gfx942", 64, 48, 256, 1),
    ],
)
def test_occupancy_is_limited_by_the_scarcest_resource(name, registers, kib, threads, occupancy):
    assert TARGETS[name].occupancy(registers, kib * KIB, threads) == occupancy


def test_a_programs_shared_memory_is_within_the_multiprocessors():
    assert all(t.shared_kib <= t.shared_kib_in_all for t in TARGETS.values())


def test_unknown_target_is_named_with_those_that_are_known():
    with pytest.raises(ValueError, match=r"target 'sm_75'; expected one of sm_80, .*gfx942"):
        find_target("sm_75")
