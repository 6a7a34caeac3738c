import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lada_cli import app
from lada_ops.compression.folder import load_model
from lada_ops.engine.optimize import DTYPES, fast_dtypes
from lada_ops.latency import WrongOutput
from lada_ops.latency.bench import ServedModels
from lada_ops.latency.cold import ColdStart
from tests.tiny_model import write_tiny_model


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def compressed(source, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("out") / "small"
    assert run("compress", source, "--ratio", "4", "--out", folder).exit_code == 0
    return folder


def run(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args])


def test_help_teaches_every_command():
    text = run("--help").output
    assert all(
        command in text for command in ("compress", "bench", "info", "tune", "inspect", "demo")
    )


@pytest.mark.parametrize("method", ["low_rank", "block_sparse", "sparse_low_rank"])
def test_compress_reports_what_it_wrote(method, source, tmp_path):
    (tmp_path / "text.txt").write_text("the old dog sleeps under the house .\na cat runs\n" * 40)
    result = run(
        "compress", source, "--ratio", "4", "--method", method, "--json",
        "--calibration", tmp_path / "text.txt", "--out", tmp_path / "out",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["ratio"] >= 4
    saved = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert saved["report"]["layers"] == report["layers"]
    assert {layer["objective"] for layer in report["layers"].values()} == {"outputs"}


def test_compress_refuses_to_overwrite_unasked(source, compressed):
    before = (compressed / "config.json").read_bytes()
    result = run("compress", source, "--ratio", "2", "--out", compressed)
    assert result.exit_code == 1
    assert "not empty" in result.stderr
    assert (compressed / "config.json").read_bytes() == before


def test_info_shows_every_layer(compressed):
    result = run("info", compressed)
    assert result.exit_code == 0
    assert result.stdout.count("encoder.layer.") == 12
    assert "FLOPs per token" in result.stdout
    assert "weight err.: |W - W'|" in result.stdout
    assert result.stderr == f"Next: lada bench {compressed}\n"


def test_info_as_json_is_the_report_in_the_folder(compressed):
    saved = json.loads((compressed / "config.json").read_text())["quantization_config"]
    shown = json.loads(run("info", compressed, "--json").stdout)
    paths = shown.pop("cpu_paths")
    assert shown == saved["report"]
    assert paths.keys() >= shown["layers"].keys()


def test_a_model_in_bfloat16_is_benched_or_its_rows_say_why_not(source, tmp_path):
    half = write_tiny_model(tmp_path / "half")
    load_model(str(source)).bfloat16().save_pretrained(half)
    result = run("compress", half, "--ratio", "4", "--out", tmp_path / "small")
    assert result.exit_code == 0, result.output
    *_, following = result.stderr.split("next: lada ")
    result = run(*shlex.split(following), "--shapes", "1x16", "--rounds", "1", "--json")
    assert result.exit_code == 0, result.output
    (comparison,) = json.loads(result.stdout)["comparisons"]
    named = {t["name"] for t in comparison["timings"]} | comparison["missing"].keys()
    optimized = {f"optimized, {str(dtype).removeprefix('torch.')}" for dtype in DTYPES}
    assert named == {"dense", "compressed", *optimized}
    assert result.stderr.startswith("To serve it, in Python: lada_ops.optimize(BertModel.from_")


@pytest.mark.parametrize("against", [False, True], ids=["made dense again", "the source"])
def test_bench_times_both_and_draws(against, source, compressed, tmp_path):
    result = run(
        "bench", compressed, "--shapes", "1x16,2x8", "--rounds", "2", "--json",
        "--plot", tmp_path / "plot.png", *(["--against", source] if against else []),
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    comparisons = json.loads(result.stdout)["comparisons"]
    assert [c["label"] for c in comparisons] == ["1x16", "2x8"]
    optimized = [f"optimized, {str(dtype).removeprefix('torch.')}" for dtype in fast_dtypes()]
    names = [t["name"] for t in comparisons[0]["timings"]]
    assert names == ["dense", "compressed", *optimized]
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_bench_looks_for_matplotlib_before_it_times(compressed, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(ServedModels, "of", None)
    result = run("bench", compressed, "--plot", tmp_path / "p.png")
    assert result.exit_code == 1
    assert result.stderr == (
        "error: lada bench --plot needs matplotlib, not installed here: "
        "pip install 'lada-ops[bench]'\n"
    )


@pytest.mark.parametrize(
    ("args", "option"),
    [
        (["compress", "{source}", "--out", "{tmp}/x", "--calibration"], "--calibration"),
        (["bench", "{dir}", "--texts"], "--texts"),
    ],
)
def test_text_that_is_no_utf8_is_named_by_option_file_and_line(
    args, option, source, compressed, tmp_path
):
    (tmp_path / "latin.txt").write_bytes(b"a dog\na caf\xe9\n")
    args = [arg.format(source=source, dir=compressed, tmp=tmp_path) for arg in args]
    result = run(*args, tmp_path / "latin.txt")
    assert result.exit_code == 1
    where = f"{option}: {tmp_path / 'latin.txt'}, line 2"
    assert result.stderr == f"error: {where}: byte 0xe9 at 11; expected UTF-8 text\n"
    assert not (tmp_path / "x").exists()


def test_bench_prints_a_table(compressed):
    result = run("bench", compressed, "--shapes", "1x16", "--rounds", "1")
    assert result.exit_code == 0
    assert "1x16" in result.stdout


@pytest.mark.exhaustive
def test_bench_of_texts_tells_percentiles_and_cold_starts(compressed, tmp_path):
    (tmp_path / "texts.txt").write_text("the old dog sleeps under the house .\na cat\n" * 4)
    result = run(
        "bench", compressed, "--texts", tmp_path / "texts.txt", "--batches", "1,3", "--requests",
        "2", "--rounds", "1", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert [(t["batch"], t["requests"]) for t in found["traffic"]] == [(1, 2), (3, 2)]
    optimized = [f"optimized, {str(dtype).removeprefix('torch.')}" for dtype in fast_dtypes()]
    for traffic in found["traffic"]:
        names = [served["name"] for served in traffic["models"]]
        assert names == ["dense", "compressed", *optimized]
    assert found["traffic"][0]["padding"] == 0
    assert 0 < found["traffic"][1]["padding"] < 1
    assert list(found["cold_starts"]) == ["compressed", *optimized]


def test_bench_of_texts_prints_a_table(compressed, tmp_path, monkeypatch):
    started = ColdStart(1.0, 1.0, 1.0, 1.0, 1.0, 10**9, 10**8, 0)
    monkeypatch.setattr("lada_ops.latency.bench.cold_start", lambda *_, **__: started)
    (tmp_path / "texts.txt").write_text("a cat runs\n")
    args = "--texts", tmp_path / "texts.txt", "--batches", "1", "--requests", "1", "--rounds", "1"
    result = run("bench", compressed, *args)
    assert result.exit_code == 0, result.output
    assert "cold start" in result.stdout


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["bench", "{dir}", "--batches", "1,0"], "--batches: '0'"),
        (["bench", "{dir}", "--requests", "0"], "--requests: '0'"),
        (["bench", "{dir}", "--threads", "0"], "--threads: '0'"),
        (["bench", "{dir}", "--texts", "{tmp}/none.txt"], "none.txt"),
        (["bench", "{dir}", "--shapes", "1y2"], "--shapes: '1y2'"),
        (["bench", "{source}"], "is a dense model"),
        (["bench", "{dir}", "--shapes", "1x999"], "lengths up to the model's 128"),
        (["bench", "{dir}", "--plot", "{tmp}/none/p.png"], "a folder that exists"),
        (["compress", "{source}", "--layers", "(", "--out", "{tmp}/x"], "no regular expression"),
        (["info", "{source}"], "is a dense model"),
        (["info", "{tmp}"], "no config.json"),
        (["info", "{tmp}/none"], "does not exist"),
        (["compress", "{source}", "--ratio", "1", "--out", "{tmp}/x"], "ratio 1.0"),
        (["compress", "{source}", "--ratio", "999", "--out", "{tmp}/x"], "cannot be reached"),
        (["compress", "{source}", "--method", "block_sparse", "--block", "96x16", "--out",
          "{tmp}/x"], "block (96, 16) does not divide"),
        (["compress", "{dir}", "--out", "{tmp}/x"], "compressed already"),
        (["inspect", "low_rank"], "op 'low_rank'; expected one of low_rank_linear"),
        (["inspect", "--target", "sm_75"], "target 'sm_75'; expected one of sm_80"),
        (["tune"], "expected a compressed model's folder, or --shapes"),
        (["tune", "{dir}", "--shapes", "768x768:r64"], "and not both"),
        (["tune", "{dir}", "--tokens", "16,x"], "--tokens: 'x'"),
        (["tune", "{dir}", "--budget", "0"], "--budget: 0"),
        (["tune", "--shapes", "768x768"], "shape '768x768'; expected such as"),
        (["tune", "--shapes", "768x768:r64", "--dtype", "int8"], "dtype 'int8'"),
        (["demo", "--data", "{tmp}/none", "--out", "{tmp}/x"], "train.tsv"),
    ],
)  # fmt: skip
def test_errors_end_in_one_message_and_exit_code_1(args, message, source, compressed, tmp_path):
    places = {"dir": compressed, "source": source, "tmp": tmp_path}
    result = run(*[arg.format(**places) for arg in args])
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("target", ["sm_80", "gfx942"])
def test_inspect_compiles_for_any_target(target, monkeypatch):
    from lada_ops.machine_code import catalogue

    first = next(regime for regime in catalogue.REGIMES if regime.stem == "block_sparse_linear")
    monkeypatch.setattr(catalogue, "REGIMES", [replace(first, epilogues={"none": 99.0})])
    result = run("inspect", "block_sparse_linear", "--target", target, "--json")
    assert result.exit_code == 0, result.output
    results = json.loads(result.stdout)
    assert results["target"] == target
    assert {row["spills"] for row in results["rows"]} == {0}
    shown = run("inspect", "block_sparse_linear", "--target", target)
    assert "an estimate" in shown.stdout


def test_bench_compares_only_like_with_like(source, compressed, tmp_path):
    load_model(str(source)).half().save_pretrained(tmp_path)
    result = run("bench", compressed, "--against", tmp_path)
    assert result.exit_code == 1
    assert "BertModel in torch.float16; expected BertModel in torch.float32" in result.stderr


def test_wrong_output_is_reported_without_a_time(compressed, monkeypatch):
    def wrong(*_, **__):
        raise WrongOutput("small", "error 0.5 exceeds 0.1", 0.5, 0.1)

    monkeypatch.setattr("lada_ops.latency.models.compare_models", wrong)
    result = run("bench", compressed)
    assert result.exit_code == 1
    assert "no time is reported" in result.stderr
    assert result.stdout == ""


def test_format_from_the_future_is_refused(compressed, tmp_path):
    config = json.loads((compressed / "config.json").read_text())
    config["quantization_config"]["format_version"] = 99
    (tmp_path / "config.json").write_text(json.dumps(config))
    result = run("info", tmp_path)
    assert result.exit_code == 1
    assert "format_version 99" in result.stderr


def test_unknown_method_is_a_usage_error(source, tmp_path):
    assert run("compress", source, "--method", "magic", "--out", tmp_path / "x").exit_code == 2
