"""Tables: captions that explain marks and missing rows."""

import pytest
from rich.table import Table

from lada_cli import tables


def comparison(*speedups, missing=None):
    names = ("dense", "a", "b")
    timings = [
        {
            "name": name,
            **dict.fromkeys(("q25_seconds", "median_seconds", "q75_seconds"), 1.0),
            "speedup_median": speedup,
        }
        for name, speedup in zip(names, speedups, strict=False)
    ]
    return {"label": "1x1", "baseline": "dense", "timings": timings, "missing": missing or {}}


@pytest.mark.parametrize("speedup", [0.5, 2.0])
def test_a_star_is_explained_where_there_is_one(speedup):
    table = tables.latency({"comparisons": [comparison(1.0, speedup)]})
    assert table.caption == ("* slower than dense" if speedup < 1 else None)


def test_what_has_no_time_is_told_once_with_its_reason():
    found = [comparison(1.0, missing={"a": "no [red] b", "b": "no [red] b"})] * 2
    assert tables.latency({"comparisons": found}).caption == r"missing: a; b: no \[red] b"


def test_a_case_that_was_not_tuned_is_told_with_its_reason():
    table = tables.tuning(
        {
            "measured": {},
            "failed": {"z": "why"},
            "skipped": 0,
            "left": 1,
            "folder": "f",
        }
    )
    counts = "0 known before, 1 left, 1 failed; the tables are in f"
    assert table.caption == f"{counts}\nfailed: z: why"


def layer(weight_error, activation_error):
    return {
        "plan": {"format": "low_rank", "rank": 8},
        "weight_error": weight_error,
        "activation_error": activation_error,
        "dense": {"stored_bytes": 2},
        "compressed": {"stored_bytes": 1},
    }


def report(layers, dense, compressed):
    counts = ("stored_bytes", "masked_bytes", "parameters", "nonzeros", "flops_per_token")
    return {
        "layers": layers,
        "dense": dict.fromkeys(counts, dense),
        "compressed": dict.fromkeys(counts, compressed),
        "model_bytes_dense": dense,
        "model_bytes": compressed,
    }


@pytest.mark.parametrize(
    ("errors", "explained"),
    [((None, None), []), ((1.46, None), ["weight"]), ((1.46, 0.1), ["weight", "output"])],
    ids=["trained", "fitted to weights", "calibrated"],
)
def test_errors_that_are_shown_are_explained(errors, explained):
    (table, _) = tables.report(report({"a": layer(*errors)}, 2, 1)).renderables
    assert isinstance(table, Table)
    caption = str(table.caption or "")
    assert [line.split(" err.: ")[0] for line in caption.splitlines()] == explained


def test_nothing_left_has_no_ratio():
    empty = layer(1.0, None) | {"compressed": {"stored_bytes": 0}}
    layers, sums = tables.report(report({"a": empty}, 2, 0)).renderables
    assert isinstance(layers, Table)
    assert isinstance(sums, Table)
    assert [list(table.columns[-1].cells) for table in (layers, sums)] == [[""], [""] * 6]
