"""Pictures of whole models, and the work that their roofline counts."""

import json

import pytest
import torch
from transformers import BertConfig

from benchmarks.readme import plots
from benchmarks.readme.compression import NAMES as METHODS
from benchmarks.readme.headline import BARS, BUCKET
from benchmarks.readme.plots import (
    LATENCY,
    RATIOS,
    encoder_work,
    plot_accuracy,
    plot_device,
    plot_headline,
    plot_learning,
)
from lada_ops.host.environment import environment
from lada_ops.machine_code.roofline import Ceilings
from tests.benchmarks.compression_rows import row

pytest.importorskip("matplotlib", reason="needs: pip install lada-ops[bench]")
TOP = {"flops_per_second": 1e11, "bytes_per_second": 1e10}
NAMES = [
    "dense",
    "low_rank 2.5x",
    "low_rank 5x",
    "block_sparse 5x",
    "dense, optimized",
    "torch BSR 5x",
]


def comparison(label, names=NAMES):
    timings = [
        {"name": name, "median_seconds": 0.1 / (i + 1), "speedup_median": i + 1, "dtype": "float32"}
        for i, name in enumerate(names)
    ]
    return {"label": label, "timings": timings}


@pytest.fixture
def figures(monkeypatch):
    """Figures with their axes, in the order in which they are made."""
    made, figure = [], plots._figure
    monkeypatch.setattr(plots, "_figure", lambda *sizes: made.append(figure(*sizes)) or made[-1])
    return made


@pytest.fixture
def drawn(tmp_path, figures):
    """Axes of the pictures of a device, by file name."""
    comparisons = [
        comparison("bert_base 1x16"),
        comparison("bert_base 8x128", NAMES[:-1]),
        comparison("minilm 1x16"),
    ]
    content = {"ceilings": TOP, "comparisons": comparisons}
    (tmp_path / "bert.json").write_text(json.dumps(content))
    plot_device(tmp_path)
    assert {path.name for path in tmp_path.glob("*.png")} == {LATENCY, RATIOS}
    return dict(zip((LATENCY, RATIOS), (panels for _, panels in figures), strict=True))


def test_latency_is_a_line_for_each_model_of_one_ratio(drawn):
    (axes,) = drawn[LATENCY]
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert lines.keys() == {*NAMES} - {"low_rank 2.5x"}
    assert lines["dense"] == [[0, 100], [1, 100]]
    assert lines["torch BSR 5x"] == [[0, pytest.approx(100 / 6)]]  # missing in the other one
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1x16", "8x128"]


def test_ratios_have_a_panel_for_each_bucket_and_a_roofline(drawn):
    panels = drawn[RATIOS]
    assert [axes.get_title() for axes in panels] == ["1 x 16", "8 x 128"]
    lines = {line.get_label(): line.get_xydata() for line in panels[1].lines}
    assert lines["low_rank"].tolist() == [[2.5, 2], [5, 3]]
    work = encoder_work(BertConfig(), 8, 128, 5, torch.float32)
    at_five = dict(lines["roofline"].tolist())[5]
    assert at_five == pytest.approx(0.1 / work.seconds(Ceilings(**TOP)))


def test_work_of_one_layer_by_hand():
    config = BertConfig(hidden_size=8, num_hidden_layers=1, intermediate_size=32)
    work = encoder_work(config, batch=2, length=3, ratio=4, dtype=torch.float16)
    weights = (4 * 8 * 8 + 2 * 8 * 32) / 4
    products = 2 * 2 * (3 * 3 * 8) * 2  # of two sequences: q k^T, and that by v
    assert work.flops == 2 * weights * 6 + products
    assert work.bytes == 2 * (weights + 2 * 6 * 8)


def methods_of(axes):
    """Points of each method's line."""
    labels = {name.replace("`", ""): method for method, name in METHODS.items()}
    points = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    return {labels[label]: xy for label, xy in points.items() if label != "teacher"}


def test_accuracy_is_a_line_for_each_method_through_means_over_seeds(tmp_path, figures):
    rows = [
        row("lada", 5, 0.80, seed=0, speedup=2),
        row("lada", 5, 0.84, seed=1, speedup=3),
        row("lada", 2.5, 0.88, speedup=1.5),
        row("svd", 5, 0.70, speedup=4),
    ]
    plot_accuracy(rows, "1x128", tmp_path / "a.png")
    (axes,) = figures[0][1]
    lines = methods_of(axes)
    assert lines["lada"] == [[1.5, 88], [2.5, pytest.approx(82)]]
    assert lines["svd"] == [[4, 70]]
    assert (tmp_path / "a.png").is_file()


def test_learning_is_a_line_for_each_method_that_was_trained_at_the_ratio(tmp_path, figures):
    rows = [
        row("lada", 5, 0.8),
        row("lada", 5, 0.9, seed=1),
        row("lada", 10, 0.7),
        row("svd", 5, 0.6),
        row("calibration", 5, 0.7, curve=[]),
    ]
    plot_learning(rows, 5, tmp_path / "a.png")
    (axes,) = figures[0][1]
    lines = methods_of(axes)
    assert lines["lada"] == [[10, 50], [20, 80]]
    assert lines["svd"] == [[10, 50], [20, 60]]
    assert "calibration" not in lines
    assert (tmp_path / "a.png").is_file()


def test_learning_has_no_picture_where_nothing_was_trained(tmp_path):
    plot_learning([row("calibration", 5, 0.7, curve=[])], 5, tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


def test_the_headline_has_a_bar_for_each_model_and_its_score_beneath(tmp_path, figures):
    demo = {
        "model": "MiniLM",
        "environment": environment(),
        "models": [{"name": name, "spearman": 0.5} for name in BARS],
        "comparisons": [comparison(label, list(BARS)) for label in ("9x9", BUCKET)],
    }
    plot_headline(demo, tmp_path / "a.png")
    (axes,) = figures[0][1]
    assert [bar.get_height() for bar in axes.patches] == [1, 2, 3, 4, 5]
    labels = [text.get_text() for text in axes.get_xticklabels()]
    assert labels == [f"{label}\n\nSpearman 0.500" for label in BARS.values()]


def test_the_legend_names_the_lines_of_all_panels_and_covers_none(tmp_path, figures):
    rows = [row("lada", 5, 0.8), row("svd", 5, 0.7, task="mrpc")]
    plot_accuracy(rows, "1x128", tmp_path / "a.png")
    ((figure, panels),) = figures
    (legend,) = figure.legends
    assert len(legend.get_texts()) == 3  # lada, svd, teacher
    left = legend.get_window_extent().x0
    assert all(axes.get_window_extent().x1 < left for axes in panels)
