"""Smoke test of the benchmarks on tiny shapes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STEMS = {
    "bert",
    "block_sparse_linear",
    "low_rank_ffn",
    "low_rank_linear",
    "sparse_low_rank_linear",
}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "benchmarks", "--benchmark-only", "--quick"]
    # pytest-benchmark times nothing in a worker of pytest-xdist, as this test may run in
    env = {name: value for name, value in os.environ.items() if "PYTEST_XDIST" not in name}
    return subprocess.run(
        [*command, "-p", "no:cacheprovider", "-q", *arguments],
        cwd=ROOT,
        env={**env, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    pytest.importorskip("pytest_benchmark", reason="needs: pip install lada-ops[bench]")
    folder = tmp_path_factory.mktemp("results")
    done = run("--results", str(folder / "ours"), f"--benchmark-json={folder / 'theirs.json'}")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_there_is_one_benchmark_per_stem():
    stems = {path.stem.removeprefix("bench_") for path in ROOT.glob("benchmarks/bench_*.py")}
    assert stems == STEMS


@pytest.mark.exhaustive
def test_every_stem_writes_its_result_file(results):
    (folder,) = (results / "ours").iterdir()
    assert {path.name for path in folder.iterdir()} == {f"{stem}.json" for stem in STEMS}


@pytest.mark.exhaustive
@pytest.mark.parametrize("stem", sorted(STEMS))
def test_every_result_compares_with_dense_and_has_its_environment(results, stem):
    (path,) = (results / "ours").glob(f"*/{stem}.json")
    content = json.loads(path.read_text())
    assert content["environment"]["torch"]
    for comparison in content["comparisons"]:
        names = [timing["name"] for timing in comparison["timings"]]
        assert comparison["baseline"] == names[0] == "dense"
        assert len(names) > 1
        assert stem == "bert" or stem in names
        assert comparison["settings"]["rounds"] >= 7


@pytest.mark.exhaustive
def test_pytest_benchmark_times_each_and_stores_the_comparison(results):
    benchmarks = json.loads((results / "theirs.json").read_text())["benchmarks"]
    assert len(benchmarks) == len(STEMS)
    for benchmark in benchmarks:
        assert benchmark["stats"]["median"] > 0
        assert benchmark["extra_info"]["comparison"]["baseline"] == "dense"


@pytest.mark.exhaustive
def test_a_run_that_fails_writes_nothing(tmp_path):
    pytest.importorskip("pytest_benchmark", reason="needs: pip install lada-ops[bench]")
    (tmp_path / "test_fails.py").write_text("def test_fails(benchmark):\n    benchmark(1 / 0)\n")
    failing = str(tmp_path / "test_fails.py")
    done = run("-k", "low_rank_linear or fails", "--results", str(tmp_path / "out"), failing)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout + done.stderr
    assert not (tmp_path / "out").exists()
