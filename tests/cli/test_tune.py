"""Command `lada tune` with a fake GPU: its cases and its folder."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from lada_cli import app
from lada_ops import tune
from lada_ops.host.user_tables import user_folder
from lada_ops.tune import Bench, Case, Summary
from tests.tiny_model import write_tiny_model


@pytest.fixture(scope="module")
def compressed(tmp_path_factory) -> Path:
    source = write_tiny_model(tmp_path_factory.mktemp("model"))
    folder = tmp_path_factory.mktemp("out") / "small"
    assert run("compress", source, "--ratio", "4", "--out", folder).exit_code == 0
    return folder


@pytest.fixture
def tuned(monkeypatch):
    """Calls of a fake tuner, which reports one_launch as twice as fast as dense."""
    calls = []

    def fake(cases, folder, **kwargs):
        calls.append((list(cases), folder, kwargs))
        kwargs["say"]("measuring")
        times = {str(case): {"dense": 9.0, "one_launch": 4.5} for case in calls[-1][0]}
        return Summary(str(folder), times, failed={"another": "why"}, skipped=3, left=2)

    monkeypatch.setattr(Bench, "of_gpu", lambda: "the bench")
    monkeypatch.setattr(tune, "tune", fake)
    return calls


def run(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args])


def test_without_a_gpu_it_says_so(compressed, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = run("tune", compressed)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: tune: torch finds no GPU here")


def test_shapes_are_tuned_for_every_number_of_tokens(tuned):
    result = run("tune", "--shapes", "64x64:r32, 64x64:16x16-d20:norm", "--tokens", "16,100")
    assert result.exit_code == 0, result.output
    ((cases, folder, kwargs),) = tuned
    assert cases == [
        Case(64, 64, weight, epilogue, tokens)
        for tokens in (16, 128)
        for weight, epilogue in (("r32", "plain"), ("16x16-d20", "norm"))
    ]
    assert folder == user_folder()
    assert (kwargs["bench"], kwargs["budget"]) == ("the bench", 1800.0)


def test_a_models_linears_are_tuned(tuned, compressed, tmp_path):
    result = run(
        "tune", compressed, "--dtype", "bfloat16", "--tokens", "64", "--out", tmp_path,
        "--budget", "5",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    ((cases, folder, kwargs),) = tuned
    assert {(case.stem, case.dtype, case.tokens) for case in cases} == {
        ("low_rank_linear", "bfloat16", 64),
        ("low_rank_ffn", "bfloat16", 64),
    }
    assert (folder, kwargs["budget"]) == (tmp_path, 5.0)


def test_a_dense_model_has_nothing_to_tune(tuned, tmp_path):
    source = write_tiny_model(tmp_path)
    result = run("tune", source)
    assert result.exit_code == 1
    assert "is a dense model" in result.stderr
    assert tuned == []


def test_the_table_tells_what_is_fastest(tuned):
    result = run("tune", "--shapes", "64x64:r32", "--tokens", "16")
    assert "one_launch" in result.stdout
    assert "2.00" in result.stdout
    assert "3 known before, 2 left, 1 failed" in " ".join(result.stdout.split())
    assert result.stderr == "measuring\n"


def test_json_is_the_summary(tuned):
    result = run("tune", "--shapes", "64x64:r32", "--tokens", "16", "--json")
    found = json.loads(result.stdout)
    case = str(Case(64, 64, "r32", tokens=16))
    assert found["measured"] == {case: {"dense": 9.0, "one_launch": 4.5}}
    assert found["failed"] == {"another": "why"}
