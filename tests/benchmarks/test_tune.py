"""`benchmarks/tune.py` end to end, in Triton's interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import triton

from benchmarks import tune
from lada_kernels.table import Table
from lada_kernels.tuning import TRITON
from lada_kernels.variants import TileConfig

ROOT = Path(__file__).parents[2]


def run(*arguments):
    return subprocess.run(
        [sys.executable, "benchmarks/tune.py", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"},
        capture_output=True,
        text=True,
    )


@pytest.mark.skipif(
    triton.__version__.startswith("3.6.") and np.lib.NumpyVersion(np.__version__) >= "2.4.0",
    reason="the interpreter of Triton 3.6 cannot loop with numpy 2.4 or later",
)
def test_every_case_is_measured_and_written(tmp_path):
    done = run("--dry-run", "--out", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    for case in tune.tiny_cases():
        path = tmp_path / case.stem / Table.name("interpreter", TRITON)
        entry = Table.read(path, case.stem, "interpreter", TRITON).entries[case.key][case.tokens]
        assert isinstance(entry.variants["one_launch"].tiles, TileConfig)


def test_a_dry_run_does_not_touch_committed_tables():
    done = run("--dry-run", "--out", "kernels/lada_kernels/configs")
    assert done.returncode == 2
    assert "measures nothing that may be committed" in done.stderr


def test_cases_are_distinct_and_begin_with_the_goals():
    cases = tune.all_cases()
    assert len(set(cases)) == len(cases)
    stems = {case.stem for case in cases[:50]}
    assert {"low_rank_ffn", "low_rank_linear", "block_sparse_linear"} <= stems
    assert (cases[0].weight, cases[0].tokens) == ("r64-3072-r64", 8192)
    assert any(case.parts.groups == 3 and case.n == 3 * case.k for case in cases)
    sizes = [case.k % 768 == 0 for case in cases]
    assert sizes == sorted(sizes, reverse=True)  # BERT-base before BERT-large
