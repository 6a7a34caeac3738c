import json

from benchmarks.readme.speed import ops_section
from lada_ops.host.environment import environment


def test_ops_have_a_row_for_each_shape_and_a_column_for_each_variant(tmp_path):
    timings = [
        {"name": "dense", "speedup_median": 1.0},
        {"name": "ours", "speedup_median": 2.0},
        {"name": "theirs", "speedup_median": 0.5},
    ]
    comparisons = [{"label": label, "timings": timings} for label in ("M=16", "M=128")]
    content = {"environment": environment(), "comparisons": comparisons}
    (tmp_path / "low_rank_linear.json").write_text(json.dumps(content))
    shown = ops_section(tmp_path)
    assert "<summary>low_rank_linear</summary>" in shown
    assert [line for line in shown.splitlines() if line.startswith("| ")] == [
        "|  | ours | theirs |",
        "| --- | ---: | ---: |",
        "| M=16 | 2.00 | **0.50** |",
        "| M=128 | 2.00 | **0.50** |",
    ]


def test_ops_have_no_section_where_none_was_measured(tmp_path):
    assert ops_section(tmp_path) == ""
