"""Embedders are distilled once per ratio and compared with the dense model."""

import gzip
import json

import pytest
from typer.testing import CliRunner

from benchmarks.accuracy import embedders as embedder
from lada_ops.compression.folder import load_model
from lada_ops.data.glue import TASKS
from lada_ops.engine.optimize import DTYPES
from lada_ops.evaluate import embeddings
from lada_ops.host.environment import device_slug
from tests.data.files import write
from tests.tiny_model import write_tiny_model

HEADER = "sentence\tsentence2\tlabel"


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Folder with a tiny model's data: STS-B alone, and a treebank."""
    folder = write_tiny_model(tmp_path / "source")
    monkeypatch.setattr(embedder, "model_folder", lambda: str(folder))
    monkeypatch.setattr(embedder, "OPTIONS", ("--epochs", "1", "--batch-size", "8"))
    monkeypatch.setattr(embedder, "TASKS", {"stsb": TASKS["stsb"]})
    monkeypatch.setattr(embedder, "SHORTEST", 8)
    monkeypatch.setattr(embedder, "fast_dtypes", lambda: DTYPES)
    monkeypatch.setattr(embeddings, "BUCKETS", ((1, 16),))
    rows = [f"the dog {letter}\tthe cat {letter}\t{n % 5}" for n, letter in enumerate("abcdefgh")]
    write(tmp_path / "glue/stsb/train.tsv", HEADER, [*rows, "the dog a\ta cat\t2"])
    write(tmp_path / "glue/stsb/dev.tsv", HEADER, [*rows[-2:], "the dog y\tthe cat z\t2"])
    (tmp_path / "ud/en").mkdir(parents=True)
    for name in ("train", "dev", "test"):
        lines = f"# sent_id = {name}\n# text = the {name} text\n1\tthe\n"
        (tmp_path / f"ud/en/{name}.conllu.gz").write_bytes(gzip.compress(lines.encode()))
    return tmp_path


def test_sentences_are_distinct_without_short_and_held_out_ones(small):
    want = [f"the {animal} {letter}" for letter in "abcdef" for animal in ("dog", "cat")]
    want += [f"the {name} text" for name in ("train", "dev", "test")]
    assert embedder.unlabelled(small) == want


def run(small, ratios):
    places = ["--data", small, "--work", small / "work", "--results", small]
    result = CliRunner().invoke(embedder.app, [*map(str, places), "--ratios", ratios])
    assert result.exit_code == 0, result.output


@pytest.mark.exhaustive
def test_students_are_trained_once_and_compared_with_the_dense_model(small):
    run(small, "3")
    weights = small / "work" / "embedder-3x" / "model.safetensors"
    made = weights.stat().st_mtime_ns
    run(small, "3,4")
    assert weights.stat().st_mtime_ns == made
    found = json.loads((small / device_slug() / "embedder.json").read_text())
    dtypes = ["", " bf16", " int8"]
    names = ["dense", *(f"distilled {ratio}x{dtype}" for ratio in (3, 4) for dtype in dtypes)]
    assert found["sentences"] == 15
    assert [row["name"] for row in found["models"]] == names
    assert [t["name"] for t in found["comparisons"][0]["timings"]] == names
    for row, ratio in zip(found["models"][1:], (3, 3, 3, 4, 4, 4), strict=True):
        assert row["linears_ratio"] >= ratio
        assert -1 <= row["spearman"] <= 1
    assert load_model(str(small / "work" / "embedder-3x")).config.quantization_config
