import os
import subprocess
import sys
from pathlib import Path

import torch

from tests.distill.models import tiny_classifier
from tests.distill.worker import student

ROOT = Path(__file__).parents[2]


def run(folder: Path, processes: int, batch: int) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", str(processes), "-m", "tests.distill.worker"),
            *(str(folder), str(batch)),
        ],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_two_processes_on_gloo_train_what_one_does(tmp_path):
    run(tmp_path / "two", processes=2, batch=4)
    one = student(tmp_path / "one", batch=8).state_dict()
    two = type(tiny_classifier()).from_pretrained(tmp_path / "two" / "student").state_dict()
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-5)
    checkpoints = list((tmp_path / "two" / "work" / "1-train").glob("checkpoint-*"))
    assert len(checkpoints) == 4
