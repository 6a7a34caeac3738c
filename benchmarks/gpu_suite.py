"""GPU suite: tests, ceilings, kernels beside their peers, and tuning, in one command.

``PYTHONPATH=.:kernels python benchmarks/gpu_suite.py --budget 540 --out benchmarks/results``

The most valuable stages and rows come first. Needs torch, triton, transformers, numpy, rich and
pytest. Results are written row by row to ``OUT/<device>/suite_*.json``, with a report in
``SUITE.md``; a second run goes on where the first one stopped.

``--dry-run`` runs the same code without a GPU: tiny shapes, Triton's interpreter, the CPU's clock,
and results in a folder of their own, marked as such.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
STAGES = ("tests", "ceilings", "kernels", "tune")
MAX_CRASHES = 20
CRASHED = 75  # exit status of a stage that lost its GPU and must be restarted
OVERTIME = 45.0  # seconds after its deadline at which a stage counts as hanging
HUNG = 124


def main(arguments: Sequence[str] | None = None) -> int:
    given = parse(arguments)
    end = time.time() + given.budget
    out = given.out
    if given.dry_run and out is None:
        out = Path(tempfile.mkdtemp(prefix="lada-dry-run-"))
    out = out or RESULTS
    status = 0
    for stage in given.stages:
        status = max(status, run_stage(stage, given.stages, end, out, given.dry_run))
    from benchmarks.suite.report import write_reports

    for path in write_reports(out):
        print(f"wrote {path}")
    return status


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--budget", type=float, default=540.0, help="total seconds")
    parser.add_argument("--out", type=Path, help="folder of results (default: benchmarks/results)")
    parser.add_argument("--stages", default=",".join(STAGES), help="comma-separated, in order")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes without a GPU")
    given = parser.parse_args(arguments)
    given.stages = given.stages.split(",")
    unknown = [stage for stage in given.stages if stage not in STAGES]
    if unknown:
        parser.error(f"--stages: {', '.join(unknown)}; expected some of {', '.join(STAGES)}")
    if given.budget <= 0:
        parser.error(f"--budget: {given.budget:g}; expected a positive number of seconds")
    if given.dry_run and given.out and given.out.resolve().is_relative_to(RESULTS):
        parser.error(f"--out: {given.out}; a dry run measures nothing and may not write there")
    return given


def run_stage(stage: str, stages: Sequence[str], end: float, out: Path, dry_run: bool) -> int:
    """Run a stage in a process of its own, restarted after a crash; its exit status."""
    from benchmarks.suite.budget import seconds_for
    from benchmarks.suite.checks import environment

    deadline = time.time() + seconds_for(stage, stages, end - time.time())
    command = [sys.executable, "-m", "benchmarks.suite", stage]
    command += ["--out", str(out.resolve()), "--deadline", str(deadline)]
    command += ["--dry-run"] if dry_run else []
    print(f"== {stage}: {deadline - time.time():.0f} s", flush=True)
    status = 0
    for crash in range(MAX_CRASHES):
        again = ["--after-crash"] if crash else []
        seconds = max(0.0, deadline - time.time()) + OVERTIME
        try:
            done = subprocess.run([*command, *again], cwd=ROOT, env=environment(), timeout=seconds)
            status = done.returncode
        except subprocess.TimeoutExpired:
            status = HUNG
        if status == 0:
            break
        print(f"== {stage}: ended with status {status}", flush=True)
        in_a_row = stage == "kernels" and bool(list(out.glob("*/.*.running")))
        if status == HUNG or (status != CRASHED and not in_a_row):
            break  # a restart would end alike
    return status


if __name__ == "__main__":
    raise SystemExit(main())
