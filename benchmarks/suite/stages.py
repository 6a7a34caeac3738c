"""Stages of the suite, each run in a process of its own, so that a crash costs one row."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lada_ops.host.environment import device_slug
from lada_ops.latency import Clock, CpuClock, GraphClock
from lada_ops.machine_code.roofline import Ceilings
from lada_ops.tune.device import Bench, reason

from . import ceilings, checks
from .backward import training_step
from .budget import Budget, Pace
from .cases import SuiteCase, all_cases, tiny_cases
from .forward import forward
from .measure import DeviceLost, check_device, measure
from .peers import is_tuned
from .report import CEILINGS, CHECKS, PREFIX, ceilings_text, is_ours
from .store import Store, suite_environment
from .workload import Workload

ROOT = checks.ROOT

ROUNDS = 11
WORTH_STARTING = 20.0  # least seconds for a test file or a tool
CRASHED = 75  # exit status that asks for a restart
DIED = {"failed": {"all": "the process ended while it was measured"}}


@dataclass
class Run:
    """Settings of a stage. out: folder of result files, with one folder per device."""

    out: Path
    budget: Budget
    dry_run: bool
    after_crash: bool = False

    def __post_init__(self) -> None:
        cuda = torch.cuda.is_available() and not self.dry_run
        self.device = torch.device("cuda" if cuda else "cpu")
        # Triton's interpreter computes bf16 products wrong
        self.dtype = torch.bfloat16 if cuda else torch.float16
        self.clock: Clock = GraphClock(self.device) if cuda else CpuClock()
        self.folder = self.out / device_slug(self.device)
        self.environment = suite_environment(self.dry_run)

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def store(self, name: str) -> Store:
        return Store(self.folder / f"{name}.json", self.environment)


def tests(run: Run) -> int:
    """Run tools and test files side by side; those stopped by a limit run again next time."""
    store = run.store(CHECKS)
    cuda = run.device.type == "cuda"

    def sanitize(tool: str, seconds: float) -> dict[str, Any]:
        return checks.sanitize(tool, seconds, cuda)

    def run_tests(path: str, seconds: float) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            return checks.run_tests(path, seconds, Path(folder) / "report.xml")

    def within(limit: float, job: Callable[[str, float], dict[str, Any]], name: str):
        seconds = min(limit, run.budget.left())
        return None if seconds < WORTH_STARTING else job(name, seconds)

    # tools first: after the files no time would be left
    jobs = {
        f"compute-sanitizer {tool}": partial(within, checks.SANITIZER_SECONDS, sanitize, tool)
        for tool in checks.TOOLS
    } | {
        path: partial(within, checks.TEST_SECONDS, run_tests, path)
        for path in checks.test_files(run.dry_run)
    }
    with ThreadPoolExecutor(checks.workers()) as pool:
        futures = {
            pool.submit(job): key
            for key, job in jobs.items()
            if not store.done(key) or store.rows[key].get("stopped", False)
        }
        for future in as_completed(futures):
            _keep(store, futures[future], future.result(), _tested)
    return 0


def measure_ceilings(run: Run) -> int:
    store = run.store(CHECKS)
    if not store.done(CEILINGS):
        row = ceilings.measure_ceilings(run.device, run.dtype, run.clock, run.dry_run)
        _keep(store, CEILINGS, row, ceilings_text)
    return 0


def kernels(run: Run) -> int:
    """Measure rows in decreasing value while the next one fits into the time."""
    measure_ceilings(run)
    top = ceilings.of_row(run.store(CHECKS).rows[CEILINGS])
    l2_bytes, rounds = ceilings.l2_bytes(run.device), 2 if run.dry_run else ROUNDS
    bench = Bench(run.device, run.clock, l2_bytes, rounds)
    stores: dict[str, Store] = {}
    pace = Pace()
    cases = (tiny_cases if run.dry_run else all_cases)(run.dtype_name)
    for stem in dict.fromkeys(case.stem for case in cases):
        stores[stem] = store = run.store(f"{PREFIX}{stem}")
        key = store.interrupted()
        if key is not None and run.after_crash:
            _keep(store, key, DIED, _timed)
    waiting = [case for case in cases if not stores[case.stem].done(case.row_key)]
    print(f"kernels: {len(cases) - len(waiting)} of {len(cases)} rows are there", flush=True)
    for case in waiting:
        kind = pace_of(case)
        if not run.budget.fits(pace.expected(kind)):
            print(f"no time left for {case.stem} {case.row_key}", flush=True)
            return 0
        start = time.monotonic()
        store = stores[case.stem]
        store.begin(case.row_key)
        try:
            row = _measured(case, run, bench, top)
        except DeviceLost as lost:
            row = {"case": case.to_dict(), "failed": {lost.name: f"the GPU was lost: {lost}"}}
            _keep(store, case.row_key, row, _timed)
            return CRASHED
        _keep(store, case.row_key, row, _timed)
        if bench.is_cuda:
            torch.cuda.empty_cache()  # later rows cannot reuse the graphs' memory
        pace.took(kind, time.monotonic() - start)
    return 0


def small(run: Run) -> int:
    """Run each of our kernels once on small shapes, under a memory checker."""
    wrong = 0
    for case in tiny_cases(run.dtype_name):
        workload = _workload(case, run)
        bound = 0.1 * float(workload.expected.double().abs().max())
        for name, prepare in workload.implementations.items():
            if is_ours(name) or name == "dispatch":
                ours = prepare()
                output = ours.read(ours.call(**ours.tensors))
                right = float((output.double() - workload.expected).abs().max()) <= bound
                wrong += not right
                verdict = "right" if right else "WRONG"
                print(f"{case.stem} {case.row_key} {name}: {verdict}", flush=True)
    return min(wrong, 1)


def tune(run: Run) -> int:
    """Run the tuner of the committed tables for the time that is left."""
    seconds = max(0.0, run.budget.left()) + WORTH_STARTING
    command, environment = tune_command(run), checks.environment()
    return subprocess.run(command, cwd=ROOT, env=environment, timeout=seconds).returncode


def tune_command(run: Run) -> list[str]:
    """Command of the tuner; results outside the tree take the tables with them."""
    seconds = max(1.0, run.budget.left() - WORTH_STARTING)
    command = [sys.executable, "benchmarks/tune.py", "--budget", f"{seconds:.0f}"]
    if not run.out.resolve().is_relative_to(ROOT):
        command += ["--out", str(run.out.resolve() / "configs")]
    return [*command, "--dry-run"] if run.dry_run else command


STAGES: Mapping[str, Callable[[Run], int]] = {
    "tests": tests,
    "ceilings": measure_ceilings,
    "kernels": kernels,
    "tune": tune,
    "small": small,
}


def pace_of(case: SuiteCase) -> str:
    """Kind of rows that take about as long; those in which torch's tuner runs are far slower."""
    tuner = case.stem == "block_sparse_linear" and not case.backward and not is_tuned(case)
    large = case.tokens > 8192
    return f"{case.stem}{' tuner' if tuner else ''}{' large' if large else ''}"


def _workload(case: SuiteCase, run: Run) -> Workload:
    torch.manual_seed(0)
    make = training_step if case.backward else forward
    return make(case, run.device)


def _measured(case: SuiteCase, run: Run, bench: Bench, top: Ceilings) -> dict[str, Any]:
    try:
        workload = _workload(case, run)
    except Exception as error:  # such as a reference that does not fit into memory
        check_device("operands", error, bench)
        return {"case": case.to_dict(), "failed": {"all": reason(error)}}
    return measure(workload, bench, top)


def _keep(
    store: Store,
    key: str,
    row: dict[str, Any] | None,
    line: Callable[[dict[str, Any]], str],
) -> None:
    if row is None:
        print(f"{key}: no time left", flush=True)
        return
    store.put(key, row)
    print(f"{store.path.stem.removeprefix(PREFIX)} {key}: {line(row)}", flush=True)


def _tested(row: dict[str, Any]) -> str:
    counts = [f"{row[what]} {what}" for what in ("passed", "failed", "skipped") if what in row]
    return ", ".join([*counts, *([row["reason"]] if "reason" in row else [])])


def _timed(row: dict[str, Any]) -> str:
    cells: Iterable[str] = (
        f"{name} {1e6 * timing['median_seconds']:.1f} us" for name, timing in _timings(row).items()
    )
    failed = (f"{name} failed" for name in row["failed"])
    return ", ".join([*cells, *failed])


def _timings(row: dict[str, Any]) -> dict[str, Any]:
    return row.get("timings", {})
