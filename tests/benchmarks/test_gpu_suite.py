"""GPU suite end to end: arguments, restarts after a crash, and a dry run."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_suite
from benchmarks.suite.cases import tiny_cases
from lada_ops.host.environment import device_slug

ROOT = Path(__file__).parents[2]
NEED_A_GPU = {"torch BSR", "2:4 CUTLASS", "2:4 cuSPARSELt"}
# packages that the suite must not need
BLOCKED = ("matplotlib", "platformdirs", "pytest_benchmark", "typer")


class TestArguments:
    def test_by_default_all_stages_run_for_nine_minutes(self):
        given = gpu_suite.parse([])
        assert (given.budget, given.stages, given.dry_run) == (540.0, [*gpu_suite.STAGES], False)

    def test_stages_can_be_chosen(self):
        assert gpu_suite.parse(["--stages", "ceilings,tune"]).stages == ["ceilings", "tune"]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--stages", "kernels,nonsense"], "nonsense; expected some of tests, ceilings"),
            (["--budget", "0"], "--budget: 0; expected a positive number"),
            (["--dry-run", "--out", "benchmarks/results"], "may not write there"),
            (["--dry-run", "--out", "benchmarks/results/deeper"], "may not write there"),
        ],
    )
    def test_wrong_arguments_are_refused(self, arguments, message, capsys, monkeypatch):
        monkeypatch.chdir(ROOT)
        with pytest.raises(SystemExit):
            gpu_suite.parse(arguments)
        assert message in " ".join(capsys.readouterr().err.split())


class TestStages:
    """Stages, as processes that end with a given status."""

    @pytest.fixture
    def statuses(self, monkeypatch):
        """Exit statuses to fill, each with a note of a row left behind or None; and commands."""
        planned, commands = [], []

        def run(command, **_):
            commands.append(command)
            status, note = planned.pop(0)
            if note is not None:
                note.parent.mkdir(parents=True, exist_ok=True)
                note.write_text("row")
            return subprocess.CompletedProcess(command, status)

        monkeypatch.setattr(gpu_suite.subprocess, "run", run)
        return planned, commands

    def start(self, out, stage="kernels", stages=("kernels",)):
        return gpu_suite.run_stage(stage, stages, time.time() + 100, out, dry_run=False)

    def test_a_stage_that_ends_well_runs_once(self, statuses, tmp_path):
        statuses[0].append((0, None))
        assert self.start(tmp_path) == 0
        assert len(statuses[1]) == 1
        assert "--after-crash" not in statuses[1][0]

    def test_a_stage_that_lost_the_gpu_is_restarted(self, statuses, tmp_path):
        statuses[0].extend([(gpu_suite.CRASHED, None), (0, None)])
        assert self.start(tmp_path) == 0
        assert "--after-crash" in statuses[1][1]

    def test_a_stage_that_died_in_a_row_is_restarted(self, statuses, tmp_path):
        statuses[0].extend([(-11, tmp_path / "device" / ".suite_a.json.running"), (0, None)])
        assert self.start(tmp_path) == 0

    def test_a_stage_that_died_outside_a_row_is_not(self, statuses, tmp_path):
        statuses[0].append((1, None))
        assert self.start(tmp_path) == 1

    def test_a_note_of_an_earlier_row_restarts_no_other_stage(self, statuses, tmp_path):
        statuses[0].append((1, tmp_path / "device" / ".suite_a.json.running"))
        assert self.start(tmp_path, "tune", ("tune",)) == 1

    def test_a_stage_that_hangs_is_ended_and_not_restarted(self, monkeypatch, tmp_path):
        limits = []

        def hangs(command, timeout, **_):
            limits.append(timeout)
            raise subprocess.TimeoutExpired(command, timeout)

        monkeypatch.setattr(gpu_suite.subprocess, "run", hangs)
        assert self.start(tmp_path) == gpu_suite.HUNG
        assert limits == [pytest.approx(100 + gpu_suite.OVERTIME, abs=1)]

    def test_restarts_are_limited(self, statuses, tmp_path):
        statuses[0].extend([(gpu_suite.CRASHED, None)] * 100)
        assert self.start(tmp_path) == gpu_suite.CRASHED
        assert len(statuses[1]) == gpu_suite.MAX_CRASHES

    def test_a_stage_gets_its_deadline(self, statuses, tmp_path):
        statuses[0].append((0, None))
        self.start(tmp_path, "tests", ("tests", "kernels"))
        command = statuses[1][0]
        seconds = float(command[command.index("--deadline") + 1]) - time.time()
        assert 30 < seconds <= 35


@pytest.fixture(scope="module")
def blocked(tmp_path_factory):
    """Folder whose packages fail to import, to put first on the path."""
    folder = tmp_path_factory.mktemp("blocked")
    for name in BLOCKED:
        (folder / f"{name}.py").write_text(f"raise ImportError('{name} is not installed')\n")
    return folder


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory, blocked):
    """Folder of results of a dry run, and its output."""
    out = tmp_path_factory.mktemp("results")
    started = run(blocked, out, "--stages", "kernels")
    assert started.returncode == 0, started.stdout + started.stderr
    return out / device_slug("cpu"), started.stdout


def run(blocked, out, *arguments):
    command = [sys.executable, "benchmarks/gpu_suite.py", "--dry-run", "--out", str(out)]
    path = os.pathsep.join([str(blocked), ".", "kernels"])
    return subprocess.run(
        [*command, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def rows_of(folder):
    return {
        (path.stem.removeprefix("suite_"), key): row
        for path in folder.glob("suite_*.json")
        for key, row in json.loads(path.read_text())["rows"].items()
    }


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_only_a_dry_run_may_write(tmp_path):
    command = [sys.executable, "benchmarks/gpu_suite.py", "--out", str(tmp_path)]
    done = subprocess.run(
        [*command, "--stages", "ceilings"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f".{os.pathsep}kernels"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "torch finds no GPU here; expected one, or --dry-run" in done.stderr
    assert not list(tmp_path.iterdir())


class TestDryRun:
    def test_every_case_is_a_row(self, dry_run):
        rows = rows_of(dry_run[0])
        assert set(rows) - {("checks", "ceilings")} == {(c.stem, c.row_key) for c in tiny_cases()}

    def test_all_implementations_work_that_need_no_gpu(self, dry_run):
        for name, row in rows_of(dry_run[0]).items():
            assert set(row.get("failed", {})) <= NEED_A_GPU, (name, row["failed"])

    def test_implementations_that_need_a_gpu_say_so(self, dry_run):
        reasons = {
            name: why
            for row in rows_of(dry_run[0]).values()
            for name, why in row.get("failed", {}).items()
        }
        assert set(reasons) == NEED_A_GPU
        assert "0 active drivers" in reasons["torch BSR"]
        assert "Only CUDA tensors" in reasons["2:4 CUTLASS"]
        assert "Only CUDA tensors" in reasons["2:4 cuSPARSELt"]

    def test_every_timing_has_its_rates(self, dry_run):
        for row in rows_of(dry_run[0]).values():
            for timing in row.get("timings", {}).values():
                assert timing["median_seconds"] > 0
                assert timing["tflops"] > 0
                assert timing["gigabytes_per_second"] > 0
                assert timing["roofline_fraction"] > 0

    def test_it_is_marked_and_its_report_too(self, dry_run):
        for path in dry_run[0].glob("suite_*.json"):
            (environment,) = json.loads(path.read_text())["environments"]
            assert environment["dry_run"] is True
        assert "A dry run" in (dry_run[0] / "SUITE.md").read_text()

    def test_it_prints_a_line_per_row(self, dry_run):
        lines = dry_run[1].splitlines()
        for case in tiny_cases():
            assert sum(line.startswith(f"{case.stem} {case.row_key}: ") for line in lines) == 1
