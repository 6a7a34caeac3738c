import pytest
from rich.console import Console

from lada_cli import tables
from lada_ops.machine_code import inspection
from lada_ops.machine_code.catalogue import launches_of
from lada_ops.machine_code.compile import CompileError
from lada_ops.machine_code.regimes import LOW_RANK, Regime
from lada_ops.machine_code.targets import TARGETS

H200 = TARGETS["sm_90"]
REGIME = Regime(
    LOW_RANK, "low_rank_linear", (8192,), {"r64": (1, 9)}, {"gelu": 1.5}, variant="one_launch"
)


@pytest.fixture(scope="module")
def row():
    return next(inspection.inspect(launches_of([REGIME]), H200))


def test_row_names_the_launch(row):
    assert (row["stem"], row["weight"], row["epilogue"]) == ("low_rank_linear", "r64", "gelu")
    assert (row["tokens"], row["k"], row["n"]) == (8192, 768, 3072)
    assert row["kernel"] == LOW_RANK
    assert row["tiles"]["BLOCK_M"] == 64


def test_row_has_the_figures_of_the_binary(row):
    assert 32 <= row["registers"] <= 255
    assert row["spills"] == 0
    assert row["occupancy"] >= 1
    assert 0 < row["shared_kib"] <= 227
    assert 0 < row["issue_per_tensor"] < 9


def test_row_lists_faults(row):
    (fault,) = row["faults"]
    assert fault.startswith("instructions per element")


def test_row_bounds_the_time(row):
    assert row["gflop"] == pytest.approx(2 * 8192 * 64 * (768 + 3072) / 1e9)
    assert row["bound_us"] == pytest.approx(row["mbyte"] / 4.8)
    assert row["bound_by"] == "memory"


def test_a_launch_that_does_not_compile_is_a_fault(monkeypatch):
    def refuse(launch, target):
        raise CompileError("ptxas says no")

    monkeypatch.setattr(inspection, "compile_launch", refuse)
    (got,) = inspection.inspect(launches_of([REGIME]), H200)
    assert got["faults"] == ["ptxas says no"]
    assert got["registers"] is None


def test_table_shows_figures_faults_and_their_source(row):
    console = Console(width=80)
    results = {"target": "sm_90", "gpu": "H200", "teraflops": 989, "gigabytes_per_second": 4800}
    with console.capture() as capture:
        console.print(tables.inspection(results | {"rows": [row]}))
    text = capture.get()
    assert "8192x768x3072 r64 gelu*" in text
    assert f"{row['registers']}" in text
    assert "instructions per element" in text
    assert "an estimate" in text
    assert "989 TFLOP/s and 4800 GB/s" in text


def test_table_of_good_kernels_says_so(row):
    console = Console(width=80)
    results = {"target": "sm_90", "gpu": "H200", "teraflops": 989, "gigabytes_per_second": 4800}
    with console.capture() as capture:
        console.print(tables.inspection(results | {"rows": [row | {"faults": []}]}))
    assert "No faults." in capture.get()
