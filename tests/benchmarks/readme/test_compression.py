import json

from benchmarks.accuracy.methods import METHODS
from benchmarks.readme.compression import NAMES, compression_section
from lada_ops.host.environment import environment
from tests.benchmarks.compression_rows import model, row


def section(folder, rows):
    content = {"environment": environment(), "rows": rows}
    (folder / "compression.json").write_text(json.dumps(content))
    return compression_section(folder)


def cells(text):
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return {c[1].strip(): [x.strip() for x in c[2:-1]] for c in (line.split("|") for line in lines)}


def test_without_measurements_there_is_no_section(tmp_path):
    assert compression_section(tmp_path) == ""


def test_every_method_has_a_name():
    assert NAMES.keys() == METHODS.keys()


def test_a_row_holds_what_was_measured(tmp_path):
    table = cells(section(tmp_path, [row("lada-block", 5, 0.885, speedup=4.25)]))
    assert table["sst2"] == [
        *("accuracy", "loyalty", "non-zeros, M", "with mask, MB", "stored, MB", "changed texts"),
        *("1x16", "1x128"),
    ]
    assert table["teacher"][:2] == ["90.0", "95.0"]
    want = ["88.5", "95.0", "2.00", "8.0", "16.0", "60.0", "4.25", "4.25"]
    assert table["`lada-block`, distilled, 5x"] == want


def test_seeds_are_a_mean_and_its_spread(tmp_path):
    rows = [row("lada", 5, score, seed) for seed, score in enumerate((0.80, 0.82, 0.84))]
    table = cells(section(tmp_path, rows))
    assert table["`lada`: SVD + pruning, distilled, 5x"][0] == "82.0 ± 2.0"


def test_a_model_slower_than_its_teacher_is_bold(tmp_path):
    table = cells(section(tmp_path, [row("pruning", 5, 0.8, speedup=0.5)]))
    assert table["pruning, trained, 5x"][-1] == "**0.50**"


def test_tasks_without_changed_texts_have_no_such_column(tmp_path):
    models = [model(0.9, 40, robust=False), model(0.8, 8, robust=False)]
    table = cells(section(tmp_path, [row("svd", 5, 0.8, task="mrpc", models=models)]))
    assert "changed texts" not in table["mrpc"]


def test_ratios_are_in_order(tmp_path):
    rows = [row("svd", ratio, 0.8) for ratio in (10, 2.5, 5)]
    names = [name for name in cells(section(tmp_path, rows)) if name.startswith("SVD")]
    assert [name.split()[-1] for name in names] == ["2.5x", "5x", "10x"]


def test_learning_is_shown_where_there_is_a_picture_of_it(tmp_path):
    rows = [row("svd", 5, 0.8)]
    assert "learning.png" not in section(tmp_path, rows)
    (tmp_path / "learning.png").touch()
    assert f"({tmp_path.name}/learning.png)" in section(tmp_path, rows)


def test_lada_block_is_timed_beside_lada_of_its_own_ratio(tmp_path):
    rows = [row("lada", 5, 0.8), row("lada-block", 5, 0.8, speedup=6), row("lada-block", 9, 0.8)]
    want = "faster: at 5x 3.0 to 3.0 times in the same engine and 4.0 to 4.0 times as torch runs"
    assert want in section(tmp_path, rows)
    assert "as torch runs" not in section(tmp_path, rows[1:])
