"""Shipped launches, compiled for targets that need not be present, pass the static gate.

Triton's interpreter is no proof: it accepts Python that the compiler rejects, and shows no spill.
"""

import itertools
import os
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
import triton
import triton.language as tl

from lada_kernels.variants import TileConfig, Variant
from lada_ops.machine_code.calls import LauncherCall
from lada_ops.machine_code.catalogue import design, launches_of, shipped, tabled
from lada_ops.machine_code.compile import compile_launch
from lada_ops.machine_code.gate import Limits, faults
from lada_ops.machine_code.hopper_regimes import REGIMES
from lada_ops.machine_code.launches import recorded
from lada_ops.machine_code.regimes import Regime
from lada_ops.machine_code.targets import TARGETS

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("TRITON_INTERPRET leaves nothing to compile", allow_module_level=True)

FP16, BF16, FP32 = torch.float16, torch.bfloat16, torch.float32
DENSE = Variant("dense")
OTHERS = [name for name in TARGETS if name != "sm_90"]
# products on sm_80, sm_86 and sm_89 are mma.sync, as on sm_120, which has no more shared memory
FAMILIES = ["sm_100", "sm_120", "gfx942"]
KERNELS = [  # together, every kernel
    LauncherCall("low_rank_linear", 8192, 3072, 768, "r96", "norm"),
    LauncherCall("low_rank_linear", 8192, 768, 3072, "r256", "gelu"),
    LauncherCall("block_sparse_linear", 8192, 768, 3072, "128x16-d20", "gelu", FP16),
    LauncherCall("sparse_low_rank_linear", 8192, 768, 3072, "r64+128x16-d05", "gelu"),
    LauncherCall("low_rank_linear", 8192, 768, 3072, "r64", "none", gradient="x"),
    LauncherCall("low_rank_linear", 8192, 768, 3072, "r128", "none", gradient="factors"),
    LauncherCall("block_sparse_linear", 512, 768, 3072, "128x16-d05", "none", gradient="values"),
    LauncherCall("low_rank_ffn", 16, 768, 768, "r64-3072-r64", "norm"),
    LauncherCall("low_rank_linear", 8192, 768, 3072, "r64", "gelu+residual", variant=DENSE),
]
PORTABLE = [
    *KERNELS,
    LauncherCall("low_rank_linear", 16, 768, 3072, "r64", "gelu", FP16),
    LauncherCall("low_rank_linear", 16384, 768, 3072, "r128", "gelu+residual"),
    LauncherCall("block_sparse_linear", 16, 768, 3072, "128x16-d20", "gelu"),
    LauncherCall(
        *("block_sparse_linear", 8192, 768, 3072, "32x32-d20", "gelu+residual"), whole_packs=False
    ),
    LauncherCall("sparse_low_rank_linear", 8192, 768, 2304, "r64x3+128x16-d05", "none"),
    LauncherCall("block_sparse_linear", 8192, 768, 3072, "64x16-d05", "none", gradient="x"),
    LauncherCall("low_rank_ffn", 8192, 768, 768, "r128-3072-r128", "norm"),
    LauncherCall("low_rank_linear", 8192, 3072, 768, "r64", "norm", FP16, DENSE),
]
ACTIVATIONS = ["relu", "gelu_tanh", "silu", "tanh"]  # shipped launches have "none" and "gelu"
SINGLE = [  # fp32: FMA in registers, without tensor cores
    LauncherCall("block_sparse_linear", 8192, 768, 3072, "64x16-d20", "gelu", FP32),
    LauncherCall("sparse_low_rank_linear", 8192, 768, 3072, "r64+128x16-d05", "none", FP32),
    LauncherCall("low_rank_linear", 8192, 3072, 768, "r64", "norm", FP32, DENSE),
]


def exhaustive(values, chosen):
    """Parameters; those not `chosen` repeat what the chosen ones test, and are left to test-all."""
    return [v if v in chosen else pytest.param(v, marks=pytest.mark.exhaustive) for v in values]


def on_other_targets():
    """Each launch with each target but sm_90; `make test` has every kernel once, on a family."""
    chosen = list(zip(KERNELS, itertools.cycle(FAMILIES), strict=False))
    return [
        pytest.param(*pair, marks=[] if pair in chosen else pytest.mark.exhaustive)
        for pair in itertools.product(PORTABLE, OTHERS)
    ]


def corner(regime: Regime) -> Regime:
    """Last weight and last epilogue of a regime, those with the highest register pressure."""
    return replace(
        regime,
        weights=dict([*regime.weights.items()][-1:]),
        epilogues=dict([*regime.epilogues.items()][-1:]),
    )


CORNERS = {entry.launch for entry in launches_of(map(corner, REGIMES))}
SHIPPED = shipped() + tabled()
CHOSEN = [entry for entry in SHIPPED if entry.launch in CORNERS]


@pytest.mark.parametrize(
    "entry", exhaustive(SHIPPED, CHOSEN), ids=lambda s: f"{s.call} {s.launch.name}"
)
def test_shipped_launches_pass_on_hopper(entry):
    assert faults(compile_launch(entry.launch, TARGETS["sm_90"]), entry.limits) == []


@pytest.mark.parametrize(("call", "target"), on_other_targets(), ids=str)
def test_launches_pass_on_other_targets(call, target):
    for launch in call.launches():
        assert faults(compile_launch(launch, TARGETS[target]), design(launch)) == []


@pytest.mark.parametrize("target", exhaustive(["sm_80", "gfx942"], ["gfx942"]))
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_compiles(activation, target):
    (launch,) = LauncherCall(
        "block_sparse_linear", 17, 768, 768, "16x16-d10", activation
    ).launches()
    assert faults(compile_launch(launch, TARGETS[target]), design(launch)) == []


@pytest.mark.parametrize("target", exhaustive(TARGETS, ["sm_90"]))
@pytest.mark.parametrize("call", SINGLE, ids=str)
def test_single_precision_passes(call, target):
    for launch in call.launches():
        assert faults(compile_launch(launch, TARGETS[target]), design(launch)) == []


DEPENDENT = [  # together, every kernel with programmatic dependent launch
    ("low_rank_linear", "r64", "one_launch", None),
    ("low_rank_linear", "r256", "two_launches", None),
    ("block_sparse_linear", "64x16-d20", "one_launch", None),
    ("sparse_low_rank_linear", "r64+64x16-d05", "one_launch", None),
    ("low_rank_ffn", "r64-3072-r64", "one_launch", None),
    ("low_rank_ffn", "r64-3072-r64", "split", None),
    ("low_rank_linear", "r64", "one_launch", "x"),
]
# opcodes that access global memory
MEMORY = re.compile(r"LD\b|LDG|ST\b|STG|ATOM|RED\b|REDG|UTMA|UBLK")


@pytest.mark.parametrize("target", exhaustive(["sm_90", "sm_100", "sm_120"], ["sm_90"]))
@pytest.mark.parametrize("pdl", exhaustive([True, False], [True]))
@pytest.mark.parametrize(("stem", "weight", "variant", "gradient"), DEPENDENT)
def test_a_dependent_launch_waits_before_it_accesses_memory(
    stem, weight, variant, gradient, pdl, target
):
    tiles = TileConfig(16, 64, 64, 4, 2, pdl)
    call = LauncherCall(
        stem, 16, 768, 768, weight, "norm", variant=Variant(variant, tiles), gradient=gradient
    )
    for launch in call.launches():
        found = compile_launch(launch, TARGETS[target])
        assert found.code is not None
        opcodes = [opcode.split(".")[0] for opcode in found.code.opcodes]
        first = next(i for i, opcode in enumerate(opcodes) if MEMORY.match(opcode))
        for name in ("ACQBULK", "PREEXIT"):  # griddepcontrol.wait, .launch_dependents
            assert opcodes.count(name) == opcodes[:first].count(name) == pdl
        assert faults(found, design(launch)) == []


@triton.jit
def _gather(
    x_ptr,  # (4096, 4096)
    index_ptr,  # columns of x, or blocks of 16 columns
    w_ptr,  # (4096, 4096)
    y_ptr,  # (4096, 4096)
    K,
    BY_COLUMN: tl.constexpr,
    RESCALE: tl.constexpr,
    ERF: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """``y = x[:, columns] @ w``, with a performance bug per flag."""
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    lane = tl.arange(0, BLOCK_K)
    at = lane if BY_COLUMN else lane // 16
    index = tl.load(index_ptr + at)
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for k in range(0, K, BLOCK_K):
        if BY_COLUMN:  # the hint is lost, since the loop carries the hinted value
            columns = tl.max_contiguous(tl.multiple_of(index, 16), 16)
        else:
            columns = index * 16 + lane % 16
        x = tl.load(x_ptr + offs_m[:, None] * SIZE + columns[None, :])
        w = tl.load(w_ptr + (k + lane)[:, None] * SIZE + offs_n[None, :])
        index = tl.load(index_ptr + (k + BLOCK_K) // (1 if BY_COLUMN else 16) + at)
        acc = tl.dot(x, w, acc)
        if RESCALE:
            acc *= 0.5
    if ERF:
        acc = 0.5 * acc * (1.0 + tl.erf(acc * 0.70710678))
    y_ptrs = y_ptr + offs_m[:, None] * SIZE + offs_n[None, :]
    tl.store(y_ptrs, acc.to(y_ptr.dtype.element_ty))


_gather_kernel: Any = _gather  # type checkers read a launch as a call
GOOD = {
    **{"BY_COLUMN": False, "RESCALE": False, "ERF": False, "SIZE": 4096},
    **{"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 64, "num_warps": 4, "num_stages": 3},
}


def gather_faults(**changes) -> list[str]:
    x = torch.empty(4096, 4096, device="meta", dtype=BF16)
    index = torch.empty(4096, device="meta", dtype=torch.int32)
    with recorded() as launches:
        _gather_kernel[(64, 64)](x, index, x, x, 4096, **(GOOD | changes))
    limits = Limits(copy_bits=128, occupancy=4, issue_per_tensor=0.75, instructions_per_element=3.5)
    return faults(compile_launch(launches[0], TARGETS["sm_90"]), limits)


def test_a_good_kernel_passes():
    assert gather_faults() == []


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"BY_COLUMN": True}, "synchronous loads in a K loop"),
        ({"BLOCK_M": 128, "BLOCK_N": 256}, "registers spill"),
        ({"RESCALE": True, "BLOCK_K": 16}, "wgmma is serialised"),
        ({"RESCALE": True}, "ptxas warns: "),
        ({"ERF": True}, "instructions per element"),
        ({"num_stages": 1}, "no async copy in an inner loop"),
        ({"BLOCK_M": 32}, "no HGMMA in an inner loop"),
        ({"num_stages": 16}, "shared memory; sm_90 has 227"),
        ({"BLOCK_N": 256}, "occupancy 1"),
        ({"BLOCK_N": 16}, "issue per tensor"),
    ],
    ids=[
        *("a lost hint", "spills", "a wait for each product", "a rescaled accumulator", "erf"),
        *("no pipeline", "low tiles", "too many stages", "too many registers", "narrow tiles"),
    ],
)
def test_a_worse_kernel_is_caught(changes, fault):
    got = gather_faults(**changes)
    assert any(fault in message for message in got), got
