import json

from benchmarks.readme.headline import DEVICE, ROWS, headline_table
from lada_ops.host.environment import environment

SIZES = {"linears_bytes": 2e6, "model_bytes": 3e6, "cosine_mean": 0.5}


def write(path, names, **more):
    models = [{"name": name, "spearman": i / 8, **SIZES} for i, name in enumerate(names)]
    content = {"models": models, "comparisons": [], "environment": environment(), **more}
    path.parent.mkdir()
    path.write_text(json.dumps(content))


def test_the_table_has_at_most_eight_rows_of_the_chosen_models(tmp_path):
    demo = tmp_path / DEVICE / "demo.json"
    write(demo, [*ROWS, "block_sparse 2.5x"], model="MiniLM", text="STS-B")
    text = headline_table(tmp_path)
    rows = [line for line in text.splitlines() if line.startswith("| ")][2:]
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == list(ROWS)
    assert len(rows) <= 8
    assert "distillation" not in text


def test_scores_after_distillation_are_those_in_float32(tmp_path):
    write(tmp_path / DEVICE / "demo.json", ROWS, model="MiniLM", text="STS-B")
    names = ["dense", "distilled 5x", "distilled 5x bf16", "distilled 10x"]
    write(tmp_path / "Another" / "embedder.json", names)
    assert headline_table(tmp_path).endswith("Spearman is 0.125 at 5x, 0.375 at 10x.\n")
