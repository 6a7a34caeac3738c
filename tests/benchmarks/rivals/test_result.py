"""Result files of the rivals: rows kept by a later run, and tables."""

import json

import pytest
from rich.console import Console

from benchmarks.rivals import result
from benchmarks.rivals.contestants import EAGER, Contestant, chosen
from benchmarks.rivals.result import Results, lead, markdown, terminal

RIVAL = chosen(["openvino fp32"])[1]
OURS = chosen(["lada engine bf16 low_rank 5x"])[1]
GONE = {"not_measured": "onnx is not installed"}


def row(speedup, cosine=1.0):
    return {"speedup_median": speedup, "cosine_min": cosine}


@pytest.fixture
def results(tmp_path):
    return Results(tmp_path, "tiny", 2)


def reopened(results):
    return Results(results.path.parent, "tiny", 2)


def test_a_row_names_contestant_weights_shape_and_threads(results):
    results.put(OURS, "1x16", row(3.0))
    content = json.loads(results.path.read_text())
    assert results.path.name == "rivals_tiny_2t.json"
    assert content["environments"][0]["torch_threads"] == 2
    assert "openvino" in content["environments"][0]
    (found,) = content["rows"].values()
    told = ("model", "threads", "contestant", "precision", "method", "ratio", "shape")
    assert [found[key] for key in told] == [
        *("tiny", 2, "lada engine bf16 low_rank 5x", "bf16", "low_rank", 5.0, "1x16")
    ]


def test_a_measured_row_is_done_for_the_next_run(results):
    results.put(RIVAL, "1x16", row(2.0))
    assert reopened(results).done(RIVAL, "1x16")
    assert not reopened(results).done(RIVAL, "1x128")


def test_rows_not_measured_are_tried_again(results):
    results.put(RIVAL, "1x16", GONE)
    assert not reopened(results).done(RIVAL, "1x16")


def test_ours_is_measured_again_when_our_source_changes(results, monkeypatch):
    results.put(OURS, "1x16", row(3.0))
    results.put(RIVAL, "1x16", row(2.0))
    assert reopened(results).done(OURS, "1x16")
    monkeypatch.setattr(result, "source", lambda: "changed")
    assert not reopened(results).done(OURS, "1x16")
    assert reopened(results).done(RIVAL, "1x16")


def test_another_version_of_a_rival_is_another_environment(results, monkeypatch):
    results.put(RIVAL, "1x16", row(2.0))
    monkeypatch.setattr(result, "version", lambda name: "99")
    assert not reopened(results).done(RIVAL, "1x16")


def test_the_source_hash_covers_python_and_cpp(tmp_path, monkeypatch):
    monkeypatch.setattr(result, "ROOT", tmp_path)
    hashes = {result.source()}
    for name in ("lada_ops/a.py", "kernels/lada_kernels/cpu/a.cpp"):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_text("new")
        hashes.add(result.source())
    assert len(hashes) == 3


def test_the_table_is_contestants_by_shapes(results):
    stranger = Contestant("stranger", "nobody:home")
    results.put(stranger, "8x128", row(1.5))
    results.put(OURS, "8x128", row(4.0, 0.99996))
    results.put(OURS, "1x16", row(9.876, 0.9912))
    results.put(EAGER, "8x128", row(1.0))
    assert markdown(results.path) == (
        "|  | cosine | 1x16 | 8x128 |\n"
        "| --- | ---: | ---: | ---: |\n"
        "| eager | 1.0000 | - | 1.00 |\n"
        "| lada engine bf16 low_rank 5x | 0.9912 | 9.88 | 4.00 |\n"
        "| stranger | 1.0000 | - | 1.50 |\n"
    )


def test_the_lead_is_over_the_best_rival_on_the_same_weights(results):
    speedups = {
        "openvino fp32": 99,
        "openvino fp32 low_rank 2.5x": 8,
        "openvino fp32 low_rank 5x": 4,
        "onnxruntime fp32 low_rank 5x": 3,
        "onnxruntime int8 low_rank 5x": 9,
        "lada modules low_rank 5x": 50,
        "lada engine fp32 low_rank 5x": 6,
        "lada engine bf16 low_rank 5x": 7,
    }
    for contestant in chosen([*speedups])[1:]:
        results.put(contestant, "1x16", row(speedups[contestant.name]))
    (ours,) = chosen(["lada engine fp32 low_rank 5x"])[1:]
    results.put(ours, "1x128", row(5.0))
    assert lead(results.path, "low_rank", 5) == {"fp32": {"1x16": 6 / 4}}


def test_the_table_lists_contestants_not_measured_with_reasons(results):
    for shape in ("1x16", "1x128"):
        results.put(RIVAL, shape, GONE)
        results.put(OURS, shape, GONE)
    text = markdown(results.path)
    assert "| openvino fp32 | - | - | - |" in text
    assert text.endswith(
        "\nNot measured: openvino fp32, lada engine bf16 low_rank 5x: onnx is not installed\n"
    )


def test_a_cosine_is_never_rounded_up_to_one(results):
    results.put(RIVAL, "1x16", row(1.0, 0.99998))
    assert "| 0.9999 |" in markdown(results.path)


def test_the_terminal_shows_the_same(results):
    results.put(RIVAL, "1x16", row(2.345))
    results.put(OURS, "1x16", GONE)
    console = Console(width=100)
    with console.capture() as capture:
        console.print(terminal(results.path))
    assert "2.35" in capture.get() or "2.34" in capture.get()
    assert "onnx is not installed" in capture.get()
