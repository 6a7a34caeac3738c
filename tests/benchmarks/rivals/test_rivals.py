"""Races of tiny models, end to end."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from benchmarks.rivals import heats, result
from benchmarks.rivals.__main__ import app
from benchmarks.rivals.contestants import EAGER, Contestant, chosen
from benchmarks.rivals.race import Rules
from benchmarks.rivals.remote import Worker
from benchmarks.rivals.result import Results
from benchmarks.rivals.setup import Setup
from benchmarks.rivals.weights import Weights
from tests.benchmarks.rivals.fakes import LocalWorker

FAST = Rules(rounds=2, seconds=1e-3)
MISSING = Contestant("missing", "tests.benchmarks.rivals.builders:is_missing")
LOW_RANK = chosen(["lada modules low_rank 5x"])[1]


@pytest.fixture
def go(tmp_path, monkeypatch):
    """Function that races contestants on the tiny model, and returns progress lines and rows.

    Contestants run in this process, since another takes seconds to start.
    """
    monkeypatch.setattr(heats, "Worker", LocalWorker)
    monkeypatch.setattr(result, "source", lambda: "unchanged")

    def go(contestants, shapes=((1, 8),), **options):
        progress = []
        results = Results(tmp_path, "tiny", 1)
        heats.run(
            [EAGER, *contestants],
            shapes,
            Weights("tiny", tmp_path),
            results,
            exports=tmp_path / "exports",
            say=progress.append,
            **{"threads": 1, "rules": FAST, "at_once": 2, "again": False, **options},
        )
        rows = json.loads(results.path.read_text())["rows"].values()
        return progress, {(row["contestant"], row["shape"]): row for row in rows}

    return go


def starts(progress):
    return [line.split(": ")[1].removesuffix(" starts") for line in progress if "starts" in line]


def test_ours_runs_beside_eager(go):
    _, rows = go([LOW_RANK], [(1, 8), (2, 4)])
    assert set(rows) == {
        (name, shape) for name in ("eager", LOW_RANK.name) for shape in ("1x8", "2x4")
    }
    for row in rows.values():
        assert row["speedup_median"] > 0
        assert row["error"] < 1e-4


def test_a_missing_package_is_a_row(go):
    _, rows = go([MISSING, LOW_RANK])
    reason = "a_package_that_nobody_has is not installed"
    assert rows["missing", "1x8"]["not_measured"] == reason
    assert "speedup_median" in rows[LOW_RANK.name, "1x8"]


def test_a_ratio_out_of_reach_is_a_row(go):
    (_, beyond) = chosen(["lada modules block_sparse 10x"])
    _, rows = go([beyond])
    assert "cannot be reached" in rows[beyond.name, "1x8"]["not_measured"]


def test_a_second_run_measures_missing_rows_alone(go):
    go([LOW_RANK])
    progress, rows = go([LOW_RANK, MISSING], [(1, 8), (2, 4)])
    assert starts(progress) == ["missing", LOW_RANK.name]
    assert not any("1x8: lada" in line for line in progress)
    assert (LOW_RANK.name, "2x4") in rows
    assert go([LOW_RANK], [(1, 8), (2, 4)])[0] == ["rivals_tiny_1t.json: all there"]


def test_contestants_that_are_compared_share_a_heat(go):
    rivals = [
        MISSING,
        LOW_RANK,
        replace(MISSING, runtime="other"),
        replace(LOW_RANK, runtime="new"),
    ]
    progress, _ = go(rivals)
    first_time = next(i for i, line in enumerate(progress) if line.endswith("x8: eager: 1.00"))
    assert starts(progress[:first_time]) == ["missing", "other"]
    assert starts(progress[first_time:]) == [LOW_RANK.name, "new low_rank 5x"]


def test_again_repeats_measured_rows(go):
    go([LOW_RANK])
    assert starts(go([LOW_RANK], again=True)[0]) == [LOW_RANK.name]


class TestWeights:
    def test_expected_outputs_of_compressed_weights_are_their_own(self, tmp_path):
        weights = Weights("tiny", tmp_path)
        dense, compressed = (weights.expected(c, (1, 8)) for c in (EAGER, LOW_RANK))
        model = torch.load(weights.file(LOW_RANK), weights_only=False)
        ids = torch.from_numpy(np.load(weights.inputs((1, 8))))
        with torch.no_grad():
            got = model(ids).last_hidden_state
        torch.testing.assert_close(got, torch.from_numpy(compressed), rtol=0, atol=1e-4)
        assert not np.allclose(dense, compressed, atol=0.1)

    def test_weights_are_equal_in_every_run(self, tmp_path):
        runs = []
        for name in ("first", "second"):
            (tmp_path / name).mkdir()
            runs.append(Weights("tiny", tmp_path / name).expected(LOW_RANK, (1, 8)))
        np.testing.assert_array_equal(*runs)


@pytest.mark.parametrize(
    ("pattern", "needs"),
    [
        pytest.param("packed dense", None, marks=pytest.mark.exhaustive),
        ("torch int8 dynamic", None),
        pytest.param("onnxruntime fp32 low_rank 5x", "onnxruntime", marks=pytest.mark.exhaustive),
        pytest.param("onnxruntime int8", "onnxruntime", marks=pytest.mark.exhaustive),
        pytest.param("openvino fp32 low_rank 5x", "openvino", marks=pytest.mark.exhaustive),
    ],
)
def test_rivals_give_eagers_outputs(pattern, needs, tmp_path):
    if needs is not None:
        for name in (needs, "onnx", "onnxscript"):
            pytest.importorskip(name, reason="the rivals come with: pip install lada-ops[rivals]")
    (_, rival) = chosen([pattern])
    weights = Weights("tiny", tmp_path)
    setup = Setup(
        rival.build, str(weights.file(rival)), str(tmp_path / "exports"), 1, rival.precision
    )
    atol = 0.3 if rival.precision == "int8" else 1e-3
    with Worker(setup) as remote:
        for shape in ((1, 8), (3, 5)):
            remote.bind(weights.inputs(shape))
            remote.time(1)
            want = weights.expected(rival, shape)
            np.testing.assert_allclose(remote.output(), want, rtol=0, atol=atol)


def test_eager_runs_in_bf16(tmp_path):
    (_, rival) = chosen(["eager bf16"])
    weights = Weights("tiny", tmp_path)
    setup = Setup(rival.build, str(weights.file(rival)), str(tmp_path), 1, rival.precision)
    y = setup.start()(np.load(weights.inputs((3, 5))))()
    assert y.dtype == torch.bfloat16
    np.testing.assert_allclose(
        y.float().numpy(), weights.expected(rival, (3, 5)), rtol=0, atol=0.05
    )


class TestCommandLine:
    def run(self, *arguments):
        return CliRunner().invoke(app, list(arguments))

    def test_results_are_written_and_printed(self, tmp_path):
        done = self.run(
            *("--models", "tiny", "--shapes", "1x8", "--threads", "1", "--rounds", "1"),
            *("--seconds", "0.001", "--contestants", "eager", "--results", str(tmp_path)),
        )
        assert done.exit_code == 0, done.output
        assert len(list(tmp_path.glob("*/rivals_tiny_1t.json"))) == 1
        assert "1x8" in done.stdout

    @pytest.mark.parametrize(
        ("option", "value", "reason"),
        [
            ("--models", "gpt", "expected some of"),
            ("--shapes", "8", "whole numbers"),
            ("--threads", "0", "whole numbers"),
            ("--contestants", "tensorflow", "no contestant matches"),
        ],
    )
    def test_wrong_options_are_refused(self, option, value, reason):
        done = self.run(option, value)
        assert done.exit_code == 2
        assert reason in " ".join(done.output.replace("│", " ").split())
