"""Is it right on this device: the tests, and small shapes under compute-sanitizer.

Test files run side by side, as many as the CPU's cores allow, since most of their time goes into
compiling. Each is one row.
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
    "tests/test_*linear.py",
    "tests/test_low_rank_ffn.py",
    "tests/latency/test_clock.py",
    "tests/latency/test_graphs.py",
)
DRY_PATTERNS = ("tests/kernels/test_activations.py",)
TEST_SECONDS = 240.0
SANITIZER_SECONDS = 180.0
TOOLS = ("memcheck", "racecheck")
MAX_FAILURES = 30


def test_files(dry_run: bool) -> list[str]:
    """The tests that a GPU may fail, those of the kernels first."""
    patterns = DRY_PATTERNS if dry_run else PATTERNS
    found = [path for pattern in patterns for path in sorted(ROOT.glob(pattern))]
    return [str(p.relative_to(ROOT)) for p in found]


def workers() -> int:
    """How many test files at once: each compiles on one core, and holds a context on the GPU."""
    return max(1, min(8, (os.cpu_count() or 1) // 2))


def run_tests(path: str, seconds: float, report: Path) -> dict[str, Any]:
    """One file's outcome: counts, failures by name and first line, and whether all is well."""
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
    """The counts of a JUnit report, and the first lines of what failed."""
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
    """The small shapes under one tool of compute-sanitizer, or why not."""
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
    """compute-sanitizer, from the path, a CUDA toolkit or an nvidia wheel."""
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
    """That of a program of ours: on our path, and out of the interpreter that a dry run is in."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    paths = [str(ROOT), str(ROOT / "kernels"), env.get("PYTHONPATH", "")]
    return env | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def run(command: Sequence[str], seconds: float, no_cache: bool = False) -> dict[str, Any]:
    """A program's exit status and the end of what it printed; ended after `seconds`.

    no_cache: torch allocates each tensor by itself, so that a tool sees where one ends.
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
            os.killpg(process.pid, 9)  # with its children, on the GPU too
            output, _ = process.communicate()
    return {
        "returncode": process.returncode,
        "timed_out": timed_out,
        "seconds": round(time.monotonic() - start, 1),
        "tail": output.strip().splitlines()[-12:],
    }
