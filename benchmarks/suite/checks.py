"""Correctness on this device: test files, and small shapes under compute-sanitizer.

Test files run in parallel, since most of their time is compilation. Each is one row.
"""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).parents[2]
PATTERNS = (
    "tests/kernels/test_*.py",
    "tests/ops/test_*linear.py",
    "tests/ops/test_low_rank_ffn.py",
    "tests/modules/test_*linear.py",
    "tests/modules/test_low_rank_ffn.py",
    "tests/latency/test_clock.py",
    "tests/latency/test_graphs.py",
)
DRY_PATTERNS = ("tests/kernels/test_activations.py",)
TEST_SECONDS = 240.0
SANITIZER_SECONDS = 180.0
TOOLS = ("memcheck", "racecheck")
MAX_FAILURES = 30


def test_files(dry_run: bool) -> list[str]:
    """Test files that run kernels, those of `lada_kernels` first."""
    patterns = DRY_PATTERNS if dry_run else PATTERNS
    found = [path for pattern in patterns for path in sorted(ROOT.glob(pattern))]
    return [str(p.relative_to(ROOT)) for p in found]


def workers() -> int:
    """Number of test files at once, each with a core to compile on and a GPU context."""
    return max(1, min(8, (os.cpu_count() or 1) // 2))


def run_tests(path: str, seconds: float, report: Path) -> dict[str, Any]:
    """Row of a test file: ok, counts, and the first line of each failure by test name."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", path]
    done = run([*command, f"--junitxml={report}"], seconds)
    row = {"ok": done["returncode"] == 0, "seconds": done["seconds"]}
    if done["timed_out"]:
        return row | _stopped(seconds) | {"tail": done["tail"]}
    try:
        return row | junit(report.read_text())
    except (OSError, ElementTree.ParseError) as error:
        return row | {"reason": f"pytest wrote no report: {error!r}", "tail": done["tail"]}


def _stopped(seconds: float) -> dict[str, Any]:
    return {"stopped": True, "reason": f"stopped after {seconds:.0f} s"}


def junit(xml: str) -> dict[str, Any]:
    """Counts of a JUnit report, and the first line of each failure by test name."""
    cases = list(ElementTree.fromstring(xml).iter("testcase"))
    failures, skipped = {}, 0
    for case in cases:
        skipped += case.find("skipped") is not None
        bad = case.find("failure")
        bad = case.find("error") if bad is None else bad
        if bad is not None:
            text = (bad.get("message") or bad.text or "").strip().splitlines()
            failures[str(case.get("name"))] = text[0][:200] if text else ""
    return {
        "passed": len(cases) - skipped - len(failures),
        "failed": len(failures),
        "skipped": skipped,
        "failures": dict(list(failures.items())[:MAX_FAILURES]),
    }


def sanitize(tool: str, seconds: float, cuda: bool) -> dict[str, Any]:
    """Row of the small shapes under one tool of compute-sanitizer, or the reason for none."""
    program = find_sanitizer(os.environ, Path(sysconfig.get_paths()["purelib"]))
    if not cuda:
        return {"ok": None, "reason": "there is no GPU"}
    if program is None:
        return {"ok": None, "reason": "compute-sanitizer was not found"}
    small = [sys.executable, "-m", "benchmarks.suite", "small", "--out", os.devnull]
    done = run([program, "--tool", tool, "--error-exitcode", "9", *small], seconds, no_cache=True)
    row = {"ok": done["returncode"] == 0, "seconds": done["seconds"], "tail": done["tail"]}
    if done["timed_out"]:
        return row | _stopped(seconds) | {"ok": None}
    return row if row["ok"] else row | {"reason": f"exit status {done['returncode']}"}


def find_sanitizer(variables: Mapping[str, str], site_packages: Path) -> str | None:
    """Path of compute-sanitizer: on PATH, in a CUDA toolkit or in an nvidia wheel."""
    name = "compute-sanitizer"
    found = shutil.which(name, path=variables.get("PATH", ""))
    if found:
        return found
    homes = [variables.get(key) for key in ("CUDA_HOME", "CUDA_PATH")]
    roots = [home for home in homes if home] + sorted(glob.glob("/usr/local/cuda*"))
    candidates = [Path(root) / part / name for root in roots for part in ("bin", name)]
    candidates += sorted(site_packages.glob(f"nvidia/**/{name}"))
    return next((str(p) for p in candidates if p.is_file() and os.access(p, os.X_OK)), None)


def environment() -> dict[str, str]:
    """Environment of a child process: our packages on its path, Triton compiling."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    paths = [str(ROOT), str(ROOT / "kernels"), env.get("PYTHONPATH", "")]
    return env | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def run(command: Sequence[str], seconds: float, no_cache: bool = False) -> dict[str, Any]:
    """Exit status and last lines of a program, killed after `seconds`.

    no_cache: disables torch's caching allocator, so that a tool sees the bounds of every tensor.
    """
    env = environment()
    if no_cache:
        env["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
    start, timed_out = time.monotonic(), False
    with subprocess.Popen(
        list(command),
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            timed_out = True
            os.killpg(process.pid, 9)  # the process group, children included
            output, _ = process.communicate()
    return {
        "returncode": process.returncode,
        "timed_out": timed_out,
        "seconds": round(time.monotonic() - start, 1),
        "tail": output.strip().splitlines()[-12:],
    }
