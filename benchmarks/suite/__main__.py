"""Run one stage: ``python -m benchmarks.suite kernels --out DIR --deadline EPOCH``."""

from __future__ import annotations

import argparse
import math
import os
import warnings
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--deadline", type=float, default=math.inf, help="seconds since the epoch")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--after-crash", action="store_true", help="restarted after a crash")
    given = parser.parse_args()
    if given.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"  # Triton reads it once, on import
    warnings.filterwarnings("ignore", "Sparse BSR tensor support|The PyTorch API of Sparse")
    import torch

    if not given.dry_run and not torch.cuda.is_available():
        parser.error("torch finds no GPU here; expected one, or --dry-run")
    from .budget import Budget
    from .stages import STAGES, Run

    run = Run(given.out, Budget(given.deadline), given.dry_run, given.after_crash)
    return STAGES[given.stage](run)


if __name__ == "__main__":
    raise SystemExit(main())
