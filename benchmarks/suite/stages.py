"""The stages of the suite, each run in a process of its own; a crash costs one row."""

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

from . import ceilings, checks
from .backward import training_step
from .budget import Budget, Pace
from .cases import Case, all_cases, tiny_cases
from .measure import ROUNDS, Bench, DeviceLost, check_device, measure, reason
from .peers import is_tuned
from .report import CEILINGS, CHECKS, PREFIX, ceilings_text, is_ours
from .store import Store, suite_environment
from .variants import forward

ROOT = checks.ROOT

WORTH_STARTING = 20.0  # seconds that a test file or a tool should have
CRASHED = 75  # exit status: start me again
DIED = {"failed": {"all": "the process ended while it was measured"}}


@dataclass
class Run:
    """out: the folder of result files, one folder per device in it."""

    out: Path
    budget: Budget
    dry_run: bool
    after_crash: bool = False

    def __post_init__(self) -> None:
        cuda = torch.cuda.is_available() and not self.dry_run
        self.device = torch.device("cuda" if cuda else "cpu")
        # bf16 products are wrong in Triton's interpreter
        self.dtype = torch.bfloat16 if cuda else torch.float16
        self.clock: Clock = GraphClock(self.device) if cuda else CpuClock()
        self.folder = self.out / device_slug(self.device)
        self.environment = suite_environment(self.dry_run)

    def store(self, name: str) -> Store:
        return Store(self.folder / f"{name}.json", self.environment)


def tests(run: Run) -> int:
    """Tools and test files, side by side. What was stopped is run again next time."""
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

    # the tools first: begun after the files, they would find no time left
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
    """Row by row in the order of their value, while the next one fits."""
    measure_ceilings(run)
    top = ceilings.of_row(run.store(CHECKS).rows[CEILINGS])
    l2_bytes, rounds = ceilings.l2_bytes(run.device), 2 if run.dry_run else ROUNDS
    bench = Bench(run.device, run.clock, l2_bytes, top, rounds)
    stores: dict[str, Store] = {}
    pace = Pace()
    cases = tiny_cases() if run.dry_run else all_cases()
    for stem in dict.fromkeys(case.stem for case in cases):
        stores[stem] = store = run.store(f"{PREFIX}{stem}")
        key = store.interrupted()
        if key is not None and run.after_crash:
            _keep(store, key, DIED, _timed)
    waiting = [case for case in cases if not stores[case.stem].done(case.key)]
    print(f"kernels: {len(cases) - len(waiting)} of {len(cases)} rows are there", flush=True)
    for case in waiting:
        kind = pace_of(case)
        if not run.budget.fits(pace.expected(kind)):
            print(f"no time left for {case.stem} {case.key}", flush=True)
            return 0
        start = time.monotonic()
        store = stores[case.stem]
        store.begin(case.key)
        try:
            row = _measured(case, run, bench)
        except DeviceLost as lost:
            row = {"case": vars(case), "failed": {lost.way: f"the GPU was lost: {lost}"}}
            _keep(store, case.key, row, _timed)
            return CRASHED
        _keep(store, case.key, row, _timed)
        if bench.cuda:
            torch.cuda.empty_cache()  # what the graphs held, no later row can have
        pace.took(kind, time.monotonic() - start)
    return 0


def small(run: Run) -> int:
    """Every way of ours on small shapes, once, for a memory checker to watch."""
    wrong = 0
    for case in tiny_cases():
        problem = _problem(case, run)
        for name, prepare in problem.ways.items():
            if is_ours(name) or name == "dispatch":
                entry = prepare()
                difference = entry.read(entry.call(**entry.tensors)).double() - problem.expected
                bound = 0.1 * float(problem.expected.double().abs().max())
                fine = float(difference.abs().max()) <= bound
                wrong += not fine
                print(f"{case.stem} {case.key} {name}: {'right' if fine else 'WRONG'}", flush=True)
    return min(wrong, 1)


def tune(run: Run) -> int:
    """The tuner of the committed tables, with the time that is left."""
    seconds = max(0.0, run.budget.left()) + WORTH_STARTING
    command, environment = tune_command(run), checks.environment()
    return subprocess.run(command, cwd=ROOT, env=environment, timeout=seconds).returncode


def tune_command(run: Run) -> list[str]:
    """Results that go elsewhere than into the tree take the tables with them."""
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


def pace_of(case: Case) -> str:
    """Rows that take about as long: one in which torch's tuner runs is much slower."""
    tuner = case.stem == "block_sparse_linear" and not case.backward and not is_tuned(case)
    large = case.tokens > 8192
    return f"{case.stem}{' tuner' if tuner else ''}{' large' if large else ''}"


def _problem(case: Case, run: Run):
    torch.manual_seed(0)
    make = training_step if case.backward else forward
    return make(case, run.device, run.dtype)


def _measured(case: Case, run: Run, bench: Bench) -> dict[str, Any]:
    try:
        problem = _problem(case, run)
    except Exception as error:  # such as a reference that does not fit into memory
        check_device("operands", error, bench)
        return {"case": vars(case), "failed": {"all": reason(error)}}
    return measure(problem, run.dtype, bench)


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
