"""Rows of the accuracy table are measured one by one, none twice."""

import json

import pytest
from typer.testing import CliRunner

from benchmarks.accuracy import table as compression_table
from lada_ops.host.environment import device_slug, environment
from tests.benchmarks.compression_rows import row


@pytest.fixture
def table(tmp_path, monkeypatch):
    """Function that runs the table with fake rows, and returns exit code and measured rows."""
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


def test_an_interrupted_table_resumes(table, tmp_path):
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


def test_rows_can_be_timed_again(table, tmp_path, monkeypatch):
    table("--methods", "svd", "--ratios", "5")
    monkeypatch.setattr(compression_table, "timed", lambda work, row: {"1x16": {"dense": 1.0}})
    assert table("--again") == (0, [])
    content = json.loads((tmp_path / device_slug() / "compression.json").read_text())
    assert [r["speedups"] for r in content["rows"]] == [{"1x16": {"dense": 1.0}}]
    assert content["environment"] == environment()
