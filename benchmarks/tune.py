"""Tune the committed tables for the current GPU and the shapes of BERT.

``PYTHONPATH=.:kernels python benchmarks/tune.py --budget 1800``

Cases are those of `benchmarks/gpu_suite.py`, the most valuable first. Entries go to
``kernels/lada_kernels/configs`` one by one; a second run goes on where the first one stopped.
``--dry-run`` runs the same code without a GPU: tiny shapes, Triton's interpreter, a stopped clock,
and tables in a folder of their own.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

CONFIGS = Path(__file__).resolve().parents[1] / "kernels" / "lada_kernels" / "configs"


def main(arguments: Sequence[str] | None = None) -> int:
    given = parse(arguments)
    if given.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are imported, below
    from lada_ops.tune import NoGpu, tune

    folder = given.out or CONFIGS
    if given.dry_run:
        folder = given.out or Path(tempfile.mkdtemp(prefix="lada-dry-run-"))
        cases, bench = tiny_cases(), interpreter()
    else:
        cases, bench = all_cases(given.dtype), None
    try:
        found = tune(
            cases,
            folder,
            budget=given.budget,
            bench=bench,
            say=lambda line: print(line, flush=True),
        )
    except (NoGpu, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    counts = f"{len(found.measured)} measured, {found.skipped} there before"
    print(f"{folder}: {counts}, {len(found.failed)} failed, {found.left} left")
    return 1 if found.failed and given.dry_run else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--budget", type=float, default=1800.0, help="seconds in all")
    parser.add_argument("--out", type=Path, help="folder of tables (default: the committed ones)")
    parser.add_argument("--dtype", default="bfloat16", help="dtype of all operands")
    parser.add_argument("--dry-run", action="store_true", help="without a GPU, on tiny shapes")
    given = parser.parse_args(arguments)
    if given.budget <= 0:
        parser.error(f"--budget: {given.budget:g}; expected seconds, more than 0")
    if given.dry_run and given.out is not None and given.out.resolve() == CONFIGS:
        parser.error("--out: a dry run measures nothing that may be committed")
    return given


def all_cases(dtype: str = "bfloat16"):
    """Forward cases of the suite in its order, each in its bucket of tuned tables."""
    from benchmarks.suite import cases as suite
    from lada_ops.tune import Case

    cases = [
        Case(case.k, case.n, case.parts.name, case.epilogue, case.tokens, dtype)
        for case in suite.all_cases()
        if not case.backward
    ]
    return list(dict.fromkeys(cases))


def tiny_cases():
    """One case per op, small enough for Triton's interpreter."""
    from lada_ops.tune import Case

    return [
        Case(32, 64, "r32", "fused", 16, "float16"),
        Case(64, 64, "64x16-d50", "plain", 16, "float16"),
        Case(64, 64, "r32+16x16-d50", "plain", 16, "float32"),
        Case(32, 32, "r32-64-r32", "norm", 16, "float16"),
    ]


class StoppedClock:
    """Clock that makes every call and reports one second each, for dry runs."""

    name = "stopped"
    min_sample_seconds = 0.0

    def sample(self, calls, count: int):
        for _ in range(count - 1):
            next(calls)()
        return 1.0, next(calls)()


def interpreter():
    """Bench on Triton's interpreter."""
    from lada_ops.tune import Bench

    return Bench(torch.device("cpu"), StoppedClock(), l2_bytes=1, rounds=1, name="interpreter")


if __name__ == "__main__":
    raise SystemExit(main())
