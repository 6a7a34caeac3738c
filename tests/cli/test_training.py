import json
import shutil
import sys

import pytest
from typer.testing import CliRunner

from lada_cli import app
from lada_ops.compression.folder import load_model
from lada_ops.compression.pretrained import compression_of
from lada_ops.engine.optimize import fast_dtypes
from tests.data.files import write_data
from tests.distill.models import tiny_classifier
from tests.tiny_model import write_tiny_model

QUICK = ("--epochs", "1", "--batch-size", "8", "--block", "32x16")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = write_tiny_model(tmp_path_factory.mktemp("teacher"))
    tiny_classifier(hidden_size=128, intermediate_size=256).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def student(teacher, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out") / "small"
    of_task = "--task", "sst2", "--data", data
    result = run("distill", teacher, *of_task, "--ratio", 3, "--out", folder, *QUICK)
    assert result.exit_code == 0, result.output
    following = f"lada eval {folder} --teacher {teacher} {' '.join(map(str, of_task))}\n"
    assert result.stderr.endswith(f"The student is in {folder}; next: {following}")
    return folder


def run(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args])


def test_distill_writes_a_model_that_loads(student):
    found = compression_of(load_model(str(student)))
    assert found is not None
    assert found[1].ratio >= 3
    assert (student / "vocab.txt").exists()


@pytest.mark.parametrize(
    ("options", "format_"),
    [
        (["--preset", "lada", "--ratio", 4, "--order", "alternate"], "low_rank"),
        (["--order", "prune_first", "--method", "sparse_low_rank", "--ratio", 3], None),
    ],
)
def test_distill_by_other_presets_and_orders(options, format_, teacher, data, tmp_path):
    result = run("distill", teacher, "--task", "sst2", "--data", data, "--out", tmp_path / "out",
                 "--json", *QUICK, *options)  # fmt: skip
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    formats = {layer["plan"]["format"] for layer in report["layers"].values()}
    assert formats == {format_} if format_ else formats <= {"low_rank", "sparse_low_rank"}


def test_distill_an_embedder_on_lines_of_text(tmp_path):
    source = write_tiny_model(tmp_path / "source")
    (tmp_path / "texts.txt").write_text("the old dog sleeps\nunder the house\n" * 20)
    result = run("distill", source, "--texts", tmp_path / "texts.txt", "--ratio", 3,
                 "--out", tmp_path / "out", *QUICK)  # fmt: skip
    assert result.exit_code == 0, result.output
    assert compression_of(load_model(str(tmp_path / "out"))) is not None


def test_eval_tells_size_score_loyalty_robustness_and_latency(student, teacher, data):
    of_task = "--teacher", teacher, "--task", "sst2", "--data", data
    result = run("eval", student, *of_task, "--shapes", "1x16", "--rounds", 2, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    optimized = [f"optimized, {str(dtype).removeprefix('torch.')}" for dtype in fast_dtypes()]
    rows = {row["name"]: row for row in found["models"]}
    assert list(rows) == ["teacher", "compressed", *optimized]
    assert rows["teacher"]["label_loyalty"] == 1
    assert rows["teacher"]["robustness"]["texts"] == 2
    sizes = [rows[name]["linears"]["stored_bytes"] for name in ("teacher", "compressed")]
    assert sizes[0] >= 3 * sizes[1]
    assert rows["compressed"]["scores"].keys() == {"accuracy"}
    timed = {t["name"] for t in found["comparisons"][0]["timings"]}
    assert timed == {"dense", "compressed", *optimized}


def test_eval_prints_a_table_and_says_what_it_left_out(student, teacher, tmp_path):
    data = write_data(tmp_path)
    shutil.rmtree(data / "robust")
    of_task = "--teacher", teacher, "--task", "sst2", "--data", data
    result = run("eval", student, *of_task, "--shapes", "1x16", "--rounds", 1)
    assert result.exit_code == 0, result.output
    assert "1x16" in result.stdout
    assert "changed texts" not in result.stdout
    assert "missing: robustness: " in result.stdout
    assert "To serve it, in Python: lada_ops.optimize(BertForSequence" in result.stderr


@pytest.mark.parametrize(
    ("args", "package", "extra"),
    [
        (["distill", "none", "--texts", "none", "--out", "none"], "accelerate", "train"),
        (["distill", "none", "--task", "sst2", "--out", "none"], "scipy, sklearn", "train"),
        (
            ["eval", "none", "--teacher", "none", "--task", "rte", "--data", "none"],
            "scipy",
            "train",
        ),
        (["demo", "--out", "none"], "matplotlib", "demo"),
        (["demo", "--out", "none", "--data", "none"], "scipy", "demo"),
    ],
)
def test_packages_that_are_not_installed_are_named_before_the_work(
    args, package, extra, monkeypatch
):
    for name in package.split(", "):
        monkeypatch.setitem(sys.modules, name, None)
    result = run(*args)
    assert result.exit_code == 1
    assert f"needs {package}, not installed here: pip install 'lada-ops[{extra}]'" in result.stderr


def test_texts_to_distill_on_that_are_no_utf8_are_named(tmp_path):
    source = write_tiny_model(tmp_path / "source")
    (tmp_path / "texts.txt").write_bytes(b"\xff\xfea\x00")
    result = run("distill", source, "--texts", tmp_path / "texts.txt", "--out", tmp_path / "out")
    assert result.exit_code == 1
    where = f"--texts: {tmp_path / 'texts.txt'}, line 1"
    assert result.stderr == f"error: {where}: byte 0xff at 0; expected UTF-8 text\n"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["distill", "{teacher}"], "expected --task with --data, or --texts"),
        (["distill", "{teacher}", "--task", "sst2"], "--data is missing"),
        (["distill", "{teacher}", "--task", "squad", "--data", "{data}"], "task 'squad'"),
        (["distill", "{teacher}", "--task", "rte", "--data", "{data}"], "train.tsv is missing"),
        (["distill", "{teacher}", "--task", "mnli", "--data", "{data}"], "2 labels; expected 3"),
        (["distill", "{student}", "--task", "sst2", "--data", "{data}"], "is compressed already"),
        (["distill", "{teacher}", "--task", "sst2", "--data", "{data}", "--ratio", "900"],
         "cannot be reached"),
        (["distill", "{teacher}", "--task", "sst2", "--data", "{data}", "--preset", "lada",
          "--ratio", "1.2"], "out of reach of rank 42"),
        (["distill", "{teacher}", "--task", "sst2", "--data", "{data}", "--order", "greedy"],
         "order 'greedy'; expected one of"),
        (["eval", "{student}", "--teacher", "{teacher}", "--task", "mrpc", "--data", "{tmp}"],
         "mrpc/dev.tsv is missing"),
        (["eval", "{student}", "--teacher", "{teacher}", "--task", "sst2", "--data", "{data}",
          "--shapes", "1x999"], "lengths up to the model's 128"),
        (["eval", "{student}", "--teacher", "{teacher}", "--task", "sst2", "--data", "{data}",
          "--threads", "0"], "--threads: '0'"),
        (["eval", "{student}", "--teacher", "{student}", "--task", "sst2", "--data", "{data}"],
         "expected the dense one that it was made of"),
    ],
)  # fmt: skip
def test_errors_end_in_one_message_and_nothing_written(
    args, message, teacher, student, data, tmp_path
):
    places = {"teacher": teacher, "student": student, "data": data, "tmp": tmp_path}
    args = [arg.format(**places) for arg in args]
    result = run(*args, *(["--out", tmp_path / "x"] if args[0] == "distill" else []))
    assert result.exit_code == 1, result.output
    assert message in result.stderr
    assert not list(tmp_path.iterdir())
