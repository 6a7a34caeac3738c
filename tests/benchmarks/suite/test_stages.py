"""Stages: measured rows are skipped, and rows that do not fit into the time are not begun."""

import math
from functools import partial

import pytest
import torch

from benchmarks import tune
from benchmarks.suite import checks, stages
from benchmarks.suite.budget import FIRST, Budget
from benchmarks.suite.cases import tiny_cases
from benchmarks.suite.measure import DeviceLost
from benchmarks.suite.report import CEILINGS, CHECKS, PREFIX
from benchmarks.suite.stages import CRASHED, WORTH_STARTING, Run
from benchmarks.suite.workload import Implementation, Workload
from lada_ops.machine_code.roofline import Ceilings

CASES = tiny_cases()
TOP = {"bytes_per_second": 1e9, "flops_per_second": 1e12, "graph_node_seconds": 1, "l2_bytes": 0}


@pytest.fixture
def measured(monkeypatch):
    """Cases in the order measured, each replaced by a row at once."""
    cases = []

    def row(case, run, bench, ceilings):
        cases.append(case)
        return {"case": case.to_dict(), "failed": {}, "ceilings": ceilings.bytes_per_second}

    monkeypatch.setattr(stages, "_measured", row)
    monkeypatch.setattr(stages.ceilings, "measure_ceilings", lambda *_: dict(TOP))
    return cases


@pytest.fixture
def run(tmp_path):
    def run(seconds=math.inf, **changes):
        return Run(tmp_path, Budget(seconds, now=lambda: 0.0), dry_run=True, **changes)

    return run


def rows(run, case):
    return run.store(f"{PREFIX}{case.stem}").rows


class TestKernels:
    def test_every_case_is_measured_in_order(self, run, measured):
        assert stages.kernels(run()) == 0
        assert measured == CASES

    def test_ceilings_are_measured_first_and_passed_to_rows(self, run, measured):
        stages.kernels(run())
        assert CEILINGS in run().store(CHECKS).rows
        assert rows(run(), CASES[0])[CASES[0].row_key]["ceilings"] == 1e9

    def test_rows_in_the_results_are_not_measured_again(self, run, measured, capsys):
        stages.kernels(run())
        measured.clear()
        stages.kernels(run())
        assert measured == []
        assert f"{len(CASES)} of {len(CASES)} rows are there" in capsys.readouterr().out

    def test_rows_that_do_not_fit_are_not_begun(self, run, measured, capsys):
        assert stages.kernels(run(seconds=FIRST - 1)) == 0
        assert measured == []
        assert f"no time left for {CASES[0].stem} {CASES[0].row_key}" in capsys.readouterr().out

    def test_a_row_is_printed(self, run, measured, capsys):
        stages.kernels(run())
        lines = capsys.readouterr().out.splitlines()
        assert sum(line.startswith(f"{CASES[1].stem} {CASES[1].row_key}: ") for line in lines) == 1

    def test_a_lost_gpu_is_a_row_and_the_process_is_restarted(self, run, measured, monkeypatch):
        def lost(case, run, bench, ceilings):
            raise DeviceLost("peer", RuntimeError("illegal memory access"))

        monkeypatch.setattr(stages, "_measured", lost)
        assert stages.kernels(run()) == CRASHED
        row = rows(run(), CASES[0])[CASES[0].row_key]
        assert "illegal memory access" in row["failed"]["peer"]

    def test_after_a_crash_the_row_is_recorded_and_not_tried_again(self, run, measured):
        run().store(f"{PREFIX}{CASES[2].stem}").begin(CASES[2].row_key)
        stages.kernels(run(after_crash=True))
        assert CASES[2] not in measured
        row = rows(run(), CASES[2])[CASES[2].row_key]
        assert row["failed"] == {"all": "the process ended while it was measured"}

    def test_a_run_that_was_stopped_from_outside_tries_its_row_again(self, run, measured):
        run().store(f"{PREFIX}{CASES[2].stem}").begin(CASES[2].row_key)
        stages.kernels(run())
        assert CASES[2] in measured


class TestTests:
    @pytest.fixture
    def files(self, monkeypatch):
        """Test files that were run, with their seconds; all pass."""
        limits = {}

        def run_tests(path, seconds, report):
            limits[path] = seconds
            return {"ok": True, "passed": 3, "failed": 0, "skipped": 0}

        monkeypatch.setattr(checks, "run_tests", run_tests)
        monkeypatch.setattr(checks, "test_files", lambda dry_run: ["a.py", "b.py"])
        return limits

    def test_every_file_and_tool_is_a_row(self, run, files):
        stages.tests(run())
        tools = {f"compute-sanitizer {tool}" for tool in checks.TOOLS}
        assert set(run().store(CHECKS).rows) == {"a.py", "b.py"} | tools

    def test_none_gets_more_than_is_left(self, run, files):
        stages.tests(run(seconds=50.0))
        assert files == {"a.py": 50.0, "b.py": 50.0}

    def test_none_gets_more_than_its_limit(self, run, files):
        stages.tests(run())
        assert files["a.py"] == checks.TEST_SECONDS

    def test_none_is_begun_too_late(self, run, files, capsys):
        stages.tests(run(seconds=WORTH_STARTING - 1))
        assert files == {}
        assert run().store(CHECKS).rows == {}
        assert "a.py: no time left" in capsys.readouterr().out

    def test_tools_do_not_wait_for_the_files(self, run, files, monkeypatch):
        done = []
        monkeypatch.setattr(checks, "workers", lambda: 1)
        monkeypatch.setattr(checks, "sanitize", lambda *_: done.append(len(files)) or {"ok": True})
        stages.tests(run())
        assert done == [0, 0]

    def test_files_in_the_results_are_not_run_again(self, run, files):
        stages.tests(run())
        files.clear()
        stages.tests(run())
        assert files == {}

    def test_stopped_files_are_run_again(self, run, files):
        stages.tests(run())
        run().store(CHECKS).put("a.py", {"ok": False, "stopped": True})
        files.clear()
        stages.tests(run())
        assert set(files) == {"a.py"}


class TestSmall:
    """Small shapes of our kernels, for a memory checker."""

    @pytest.fixture
    def outputs(self, monkeypatch):
        """Outputs of the implementations by name, filled by the test; 1 is expected."""
        by_name = {}

        def workload(case, run):
            implementations = {
                name: partial(Implementation, lambda y=y: torch.tensor([y]), {}, 1)
                for name, y in by_name.items()
            }
            return Workload(case, torch.ones(1), implementations, 4)

        monkeypatch.setattr(stages, "_workload", workload)
        return by_name

    def test_ours_are_run(self, run, outputs, capsys):
        outputs.update({"dense": 7.0, "one_launch": 1.0, "dispatch": 1.0})
        assert stages.small(run()) == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 2 * len(CASES)
        assert all(line.endswith(("one_launch: right", "dispatch: right")) for line in lines)

    @pytest.mark.parametrize("wrong", [1.2, math.nan])
    def test_a_wrong_output_fails(self, run, outputs, wrong):
        outputs["one_launch"] = wrong
        assert stages.small(run()) == 1


def test_rows_with_torchs_tuner_have_a_pace_of_their_own(monkeypatch):
    sparse = next(c for c in CASES if c.stem == "block_sparse_linear")
    monkeypatch.setattr(stages, "is_tuned", lambda case: False)
    before = stages.pace_of(sparse)
    monkeypatch.setattr(stages, "is_tuned", lambda case: True)
    assert before != stages.pace_of(sparse)


@pytest.mark.parametrize("error", [RuntimeError("no"), TypeError("no")])
def test_a_reference_that_fails_is_a_row(run, monkeypatch, error):
    def fails(*_):
        raise error

    monkeypatch.setattr(stages, "forward", fails)
    bench = stages.Bench(run().device, run().clock, 0)
    row = stages._measured(CASES[0], run(), bench, Ceilings(1.0, 1.0))
    assert row["failed"] == {"all": f"{type(error).__name__}: no"}


def test_a_dry_run_never_takes_the_gpu(run, monkeypatch):
    monkeypatch.setattr(stages.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(stages, "suite_environment", lambda dry_run: {})
    assert run().device.type == "cpu"


class TestTune:
    def test_the_tuner_parses_its_command(self, run):
        given = tune.parse(stages.tune_command(run(seconds=100.0))[2:])
        assert (given.budget, given.dry_run) == (100.0 - WORTH_STARTING, True)

    def test_tables_go_with_results_outside_the_tree(self, run, tmp_path):
        assert tune.parse(stages.tune_command(run(100.0))[2:]).out == tmp_path / "configs"

    def test_tables_go_into_the_tree_with_results_inside_it(self, run):
        inside = run(100.0)
        inside.out = stages.ROOT / "benchmarks" / "results"
        assert tune.parse(stages.tune_command(inside)[2:]).out is None

    def test_a_measurement_is_no_dry_run(self, run):
        real = run(100.0)
        real.dry_run = False
        assert not tune.parse(stages.tune_command(real)[2:]).dry_run
