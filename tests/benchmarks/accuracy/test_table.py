"""The table makes its rows one by one, and none twice."""

import json

import pytest
from typer.testing import CliRunner

from benchmarks.accuracy import table as compression_table
from lada_ops.host.environment import device_slug, environment
from tests.benchmarks.compression_rows import row


@pytest.fixture
def table(tmp_path, monkeypatch):
    """Runs the table with rows that are made up, and tells which were made."""
    made = []

    class Made:
        def __init__(self, *_):
            pass

        def make(self, method, ratio, seed):
            made.append((method, ratio, seed))
            if len(made) == 3:
                raise KeyboardInterrupt
            return row(method, ratio, 0.8, seed) | {"environment": {"cpu": "x"}}

    monkeypatch.setattr(compression_table, "Row", Made)
    monkeypatch.setattr(compression_table, "_line", lambda row: row["method"])

    def run(*options):
        args = ["--data", tmp_path, "--work", tmp_path, "--results", tmp_path, *options]
        made.clear()
        result = CliRunner().invoke(compression_table.app, [str(arg) for arg in args])
        return result.exit_code, list(made)

    return run


def test_a_table_that_was_cut_off_goes_on(table, tmp_path):
    options = "--methods", "svd,lada", "--ratios", "5,2.5"
    code, made = table(*options)
    assert code != 0
    assert made == [("svd", 5, 0), ("lada", 5, 0), ("svd", 2.5, 0)]
    content = json.loads((tmp_path / device_slug() / "compression.json").read_text())
    assert [r["method"] for r in content["rows"]] == ["svd", "lada"]
    assert content["environment"] == {"cpu": "x"}
    code, made = table(*options)
    assert (code, made) == (0, [("svd", 2.5, 0), ("lada", 2.5, 0)])
    assert table(*options) == (0, [])


def test_rows_may_be_timed_again(table, tmp_path, monkeypatch):
    table("--methods", "svd", "--ratios", "5")
    monkeypatch.setattr(compression_table, "timed", lambda work, row: {"1x16": {"dense": 1.0}})
    assert table("--again") == (0, [])
    content = json.loads((tmp_path / device_slug() / "compression.json").read_text())
    assert [r["speedups"] for r in content["rows"]] == [{"1x16": {"dense": 1.0}}]
    assert content["environment"] == environment()
