"""Test files and compute-sanitizer as rows of the suite."""

import os
import sys

import pytest

from benchmarks.suite import checks

XML = """<testsuites><testsuite>
<testcase name="good"/>
<testcase name="left_out"><skipped message="no GPU"/></testcase>
<testcase name="bad"><failure message="assert 1 == 2&#10;more">long</failure></testcase>
<testcase name="broken"><error message="no fixture">long</error></testcase>
</testsuite></testsuites>"""


def test_a_report_is_counted_and_failures_keep_their_first_line():
    assert checks.junit(XML) == {
        "passed": 1,
        "failed": 2,
        "skipped": 1,
        "failures": {"bad": "assert 1 == 2", "broken": "no fixture"},
    }


def test_files_exist_and_those_of_the_kernels_come_first():
    files = checks.test_files(dry_run=False)
    assert files[0].startswith("tests/kernels/")
    for room in ("kernels", "ops"):
        assert f"tests/{room}/test_low_rank_linear.py" in files


class TestRun:
    def test_status_and_the_end_of_the_output(self):
        program = "import sys; print('a'); print('b', file=sys.stderr); sys.exit(3)"
        done = checks.run([sys.executable, "-c", program], 60)
        assert (done["returncode"], done["timed_out"]) == (3, False)
        assert sorted(done["tail"]) == ["a", "b"]

    def test_a_program_that_takes_too_long_is_killed_with_its_children(self):
        child = "import time; time.sleep(600)"
        program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
        done = checks.run([sys.executable, "-c", program], 0.5)
        assert done["timed_out"]
        assert done["seconds"] < 60

    def test_the_interpreter_is_not_inherited(self, monkeypatch):
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        program = "import os; print('TRITON_INTERPRET' in os.environ)"
        assert checks.run([sys.executable, "-c", program], 60)["tail"] == ["False"]

    def test_our_packages_are_on_the_path(self):
        program = "import benchmarks.suite, lada_kernels; print('fine')"
        assert checks.run([sys.executable, "-c", program], 60)["tail"] == ["fine"]

    def test_the_path_is_kept(self, monkeypatch):
        monkeypatch.setenv("PYTHONPATH", "/there/before")
        assert checks.environment()["PYTHONPATH"].endswith(f"kernels{os.pathsep}/there/before")


class TestRunTests:
    def test_failures_are_named(self, tmp_path):
        (tmp_path / "test_it.py").write_text("def test_a(): pass\ndef test_b(): assert 1 == 2\n")
        row = checks.run_tests(str(tmp_path / "test_it.py"), 60, tmp_path / "report.xml")
        assert (row["ok"], row["passed"], row["failed"]) == (False, 1, 1)
        assert list(row["failures"]) == ["test_b"]

    def test_a_file_that_takes_too_long_says_so(self, tmp_path):
        (tmp_path / "test_it.py").write_text("import time\ndef test_a(): time.sleep(600)\n")
        row = checks.run_tests(str(tmp_path / "test_it.py"), 3, tmp_path / "report.xml")
        assert row["ok"] is False
        assert (row["stopped"], row["reason"]) == (True, "stopped after 3 s")

    def test_a_file_that_is_not_there_is_no_success(self, tmp_path):
        row = checks.run_tests(str(tmp_path / "test_no.py"), 60, tmp_path / "report.xml")
        assert row["ok"] is False


class TestSanitizer:
    def tool(self, folder):
        folder.mkdir(parents=True)
        path = folder / "compute-sanitizer"
        path.write_text("#!/bin/sh\necho $@\necho 'ERROR SUMMARY: 0 errors'\n")
        path.chmod(0o755)
        return str(path)

    def test_it_is_found_on_the_path(self, tmp_path):
        tool = self.tool(tmp_path / "bin")
        found = checks.find_sanitizer({"PATH": str(tmp_path / "bin")}, tmp_path / "none")
        assert found == tool

    @pytest.mark.parametrize("part", ["bin", "compute-sanitizer"])
    def test_it_is_found_in_a_toolkit(self, tmp_path, part):
        tool = self.tool(tmp_path / part)
        found = checks.find_sanitizer({"CUDA_HOME": str(tmp_path)}, tmp_path / "none")
        assert found == tool

    def test_it_is_found_in_a_wheel(self, tmp_path):
        tool = self.tool(tmp_path / "nvidia" / "cu13" / "bin")
        assert checks.find_sanitizer({}, tmp_path) == tool

    def test_where_it_is_not_the_row_says_so(self, monkeypatch):
        monkeypatch.setattr(checks, "find_sanitizer", lambda *_: None)
        row = checks.sanitize("memcheck", 60, cuda=True)
        assert row == {"ok": None, "reason": "compute-sanitizer was not found"}

    def test_without_a_gpu_the_row_says_so(self):
        assert checks.sanitize("memcheck", 60, cuda=False)["reason"] == "there is no GPU"

    def test_it_runs_the_small_shapes(self, tmp_path, monkeypatch):
        tool = self.tool(tmp_path / "bin")
        monkeypatch.setattr(checks, "find_sanitizer", lambda *_: tool)
        row = checks.sanitize("racecheck", 60, cuda=True)
        assert row["ok"] is True
        assert row["tail"][0].startswith("--tool racecheck --error-exitcode 9")
        assert "benchmarks.suite small" in row["tail"][0]

    def test_its_errors_fail_the_row(self, tmp_path, monkeypatch):
        tool = self.tool(tmp_path / "bin")
        monkeypatch.setattr(checks, "find_sanitizer", lambda *_: tool)
        with open(tool, "a") as script:
            script.write("exit 9\n")
        row = checks.sanitize("memcheck", 60, cuda=True)
        assert row["ok"] is False
        assert row["reason"] == "exit status 9"


def test_a_dry_run_tests_little():
    assert len(checks.test_files(dry_run=True)) == 1


def test_no_more_workers_than_cores(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert checks.workers() == 1
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert checks.workers() == 8
