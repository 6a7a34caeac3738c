"""Reports rendered from rows of the suite."""

import pytest

from benchmarks.suite.report import kernel_table, rendered, write_reports
from benchmarks.suite.store import Store
from tests.benchmarks.suite.row_builders import low_rank, row, timing


class TestTable:
    def test_a_line_has_times_ratios_and_the_rates_of_our_fastest(self):
        measured = row(
            low_rank(),
            timing("dense", 100.0),
            timing("one_launch", 40.0, 2.5, fraction=0.9),
            timing("two_launches", 50.0, 2.0, fraction=0.4),
            timing("dispatch", 125.0, 0.8, fraction=0.1),
        )
        lines = kernel_table({"key": measured}).splitlines()
        assert lines[0] == (
            "|  | dense | one_launch | two_launches | dispatch | TFLOP/s | GB/s | roofline |"
        )
        assert lines[2] == (
            "| key | 100.0 | 40.0 2.50× | 50.0 2.00× | 125.0 **0.80×** | 123.5 | 679 | 90 % |"
        )

    def test_launches_without_a_graph_are_marked(self):
        launched = timing("torch BSR", 5.0) | {"launched": True}
        text = kernel_table({"a": row(low_rank(), timing("dense", 1.0), launched)})
        assert "| a | 1.0 | 5.0† 1.00× |" in text

    def test_a_failure_is_in_its_cell_and_its_reason_below_once(self):
        rows = {
            str(i): row(low_rank(), timing("dense", 1.0), **{"2:4 CUTLASS": "not on sm_90"})
            for i in range(3)
        }
        text = kernel_table(rows)
        assert text.count("failed |") == 3
        assert "- 2:4 CUTLASS, 3 rows such as 0: not on sm_90\n" in text

    def test_an_implementation_that_a_row_lacks_is_a_dash(self):
        rows = {
            "a": row(low_rank(), timing("dense", 1.0), timing("split", 1.0)),
            "b": row(low_rank(), timing("dense", 1.0)),
        }
        assert kernel_table(rows).splitlines()[3].startswith("| b | 1.0 | - |")

    def test_an_unknown_implementation_comes_last(self):
        text = kernel_table({"a": row(low_rank(), timing("novel", 1.0), timing("dense", 1.0))})
        assert text.startswith("|  | dense | novel | TFLOP/s")

    def test_a_row_that_died_is_listed(self):
        text = kernel_table({"a": {"failed": {"all": "the process ended"}}})
        assert "- all, 1 rows such as a: the process ended" in text


class TestReport:
    @pytest.fixture
    def folder(self, tmp_path):
        folder, where = tmp_path / "NVIDIA_X", {"gpu": "NVIDIA X", "cuda": None}
        checks = Store(folder / "suite_checks.json", where)
        checks.put("tests/a.py", {"ok": False, "passed": 3, "failed": 1, "failures": {"bad": "1"}})
        checks.put("compute-sanitizer memcheck", {"ok": None, "reason": "not found"})
        checks.put("ceilings", CEILINGS)
        store = Store(folder / "suite_low_rank_linear.json", where)
        measured = row(low_rank(), timing("dense", 1.0), timing("one_launch", 30, fraction=0.9))
        store.put("forward key", measured)
        backward = low_rank(backward=True)
        store.put("backward key", row(backward, timing("dense", 1.0), timing("our op", 2.0)))
        return folder

    def test_it_holds_goals_checks_ceilings_and_a_table_per_kernel(self, folder):
        text = rendered(folder)
        assert "| 0.85 | met | 0.90 to 0.90 | 1 of 1 |" in text
        assert "| tests/a.py | **failed** | 3 passed, 1 failed |  |" in text
        assert "- bad: 1" in text
        assert "| compute-sanitizer memcheck | not run |  | not found |" in text
        assert "4300 GB/s, 790 TFLOP/s, 1.25 us per graph node, 60 MiB L2" in text
        assert text.index("forward key") < text.index("training step") < text.index("backward key")
        assert "gpu NVIDIA X\n" in text

    def test_rows_are_sorted_by_weight_and_then_by_tokens(self, folder):
        store = Store(folder / "suite_low_rank_linear.json", {"gpu": "NVIDIA X", "cuda": None})
        for tokens, rank in ((512, 256), (65536, 64), (16, 64)):
            store.put(f"{tokens} r{rank}", row(low_rank(tokens, rank), timing("dense", 1.0)))
        text = rendered(folder)
        assert text.index("| 16 r64") < text.index("| forward key") < text.index("| 65536 r64")
        assert text.index("| 65536 r64") < text.index("| 512 r256")

    def test_only_the_last_environment_is_shown(self, folder):
        store = Store(folder / "suite_low_rank_linear.json", {"gpu": "NVIDIA X", "cuda": "14"})
        store.put("newer key", row(low_rank(), timing("dense", 1.0)))
        text = rendered(folder)
        assert "newer key" in text
        assert "forward key" not in text

    def test_a_dry_run_says_so(self, tmp_path):
        Store(tmp_path / "suite_checks.json", {"dry_run": True}).put("ceilings", CEILINGS)
        assert "A dry run" in rendered(tmp_path)

    def test_each_device_gets_a_report(self, folder):
        assert write_reports(folder.parent) == [folder / "SUITE.md"]
        assert (folder / "SUITE.md").read_text() == rendered(folder)

    def test_folders_without_results_of_the_suite_get_none(self, tmp_path):
        (tmp_path / "AMD").mkdir()
        (tmp_path / "AMD" / "bert.json").write_text("{}")
        assert write_reports(tmp_path) == []


CEILINGS = {
    "bytes_per_second": 4.3e12,
    "flops_per_second": 790e12,
    "graph_node_seconds": 1.25e-6,
    "l2_bytes": 60 * 2**20,
}
