"""Launches that overlap with the one before them: they wait before they touch memory."""

import re
from dataclasses import replace

import pytest
import torch

from lada_kernels import block_sparse_linear, linear, low_rank_ffn, low_rank_linear
from lada_kernels.tuning import Way
from lada_ops.machine_code.cases import Case
from lada_ops.machine_code.compile import compile_launch
from lada_ops.machine_code.targets import TARGETS

F16, SIZE = torch.float16, (128, 768, 768)
LOW_RANK = low_rank_linear.default_tiles(128, 64, F16)
SPARSE = block_sparse_linear.default_tiles(128, 768, 64, 16, F16, False, False)
CASES = [
    ("low_rank_linear", "r64", "one_launch", LOW_RANK),
    ("low_rank_linear", "r64x3", "two_launches", linear.default_tiles(128, 64, F16)),
    ("low_rank_ffn", "r64-3072-r64", "one_launch", low_rank_ffn.default_tiles(128, F16)),
    ("low_rank_ffn", "r64-3072-r64", "split", low_rank_ffn.default_tiles(128, F16)),
    ("block_sparse_linear", "64x16-d20", "one_launch", SPARSE),
    ("sparse_low_rank_linear", "r64+64x16-d20", "one_launch", SPARSE),
]
MEMORY = re.compile(r"(LDG|LDGSTS|UTMALDG|UBLKCP|STG|RED|ATOMG)\b")


def first_launch(stem, weight, name, tiles, overlap):
    way = Way(name, replace(tiles, overlap=overlap))
    size = (*SIZE[:2], 3 * SIZE[2]) if weight.endswith("x3") else SIZE
    return Case(stem, *size, weight, "gelu", F16, way).launches()[0]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]} {case[1]} {case[2]}")
def test_what_overlaps_waits_first(case):
    launch = first_launch(*case, overlap=True)
    assert dict(launch.options)["launch_pdl"] is True
    binary = compile_launch(launch, TARGETS["sm_90"])
    assert binary.code is not None
    opcodes = [opcode.split(".")[0] for opcode in binary.code.opcodes]
    touches = [i for i, opcode in enumerate(binary.code.opcodes) if MEMORY.match(opcode)]
    assert opcodes.count("ACQBULK") == opcodes.count("PREEXIT") == 1
    assert opcodes.index("PREEXIT") < opcodes.index("ACQBULK") < min(touches)


@pytest.mark.parametrize("case", CASES[:2], ids=lambda case: f"{case[0]} {case[1]}")
def test_what_does_not_overlap_does_not_wait(case):
    launch = first_launch(*case, overlap=False)
    assert "launch_pdl" not in dict(launch.options)
    binary = compile_launch(launch, TARGETS["sm_90"])
    assert binary.code is not None
    assert binary.code.count("ACQBULK", "PREEXIT") == 0
