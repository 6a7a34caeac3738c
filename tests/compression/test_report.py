import json

import pytest
from hypothesis import given

from lada_ops import CompressionReport, Counts, LayerPlan, LayerReport
from tests.properties import FEW, damaged, same


def layer(block=None, **kwargs):
    made = (
        LayerPlan("low_rank", 32, 48, 8)
        if block is None
        else LayerPlan("block_sparse", 32, 48, block=block, density=0.25)
    )
    return LayerReport(made, **kwargs)


def report():
    return CompressionReport(
        {
            "a": layer(
                objective="weights",
                weight_error=0.25,
                activation_error=None,
                dense=Counts(100, 90, 400, 400, 200),
                compressed=Counts(20, 20, 80, 80, 40),
            ),
            "b": layer(
                block=(16, 8),
                objective="activations",
                weight_error=0.5,
                activation_error=0.125,
                dense=Counts(200, 200, 800, 800, 400),
                compressed=Counts(30, 30, 120, 160, 60),
            ),
        },
        5000,
        3040,
    )


def test_sums():
    assert report().dense == Counts(300, 290, 1200, 1200, 600)
    assert report().compressed == Counts(50, 50, 200, 240, 100)


def test_ratio_is_that_of_stored_bytes():
    assert report().ratio == 1200 / 240


def test_an_empty_report_has_ratio_1():
    empty = CompressionReport({}, 5000, 5000)
    assert (empty.ratio, empty.to_dict()["ratio"]) == (1.0, 1.0)


def test_it_prints_as_sums_and_a_line_a_layer():
    assert str(report()).splitlines() == [
        "CompressionReport: 2 linears; linears 0.00 to 0.00 MB, whole model 0.01 to 0.00 MB",
        "  a: low_rank, rank 8, weight error 0.250",
        "  b: block_sparse, 25.0% of 16x8, weight error 0.500, output error 0.125",
    ]


def test_a_large_one_prints_no_longer_than_a_screen():
    layers = {f"layer {i}": report().layers["a"] for i in range(72)}
    large = CompressionReport(layers, 5000, 3040)
    assert len(repr(large)) < 100
    assert str(large).splitlines()[20:] == [
        "  layer 19: low_rank, rank 8, weight error 0.250",
        "  and 52 more in .layers",
    ]


def test_json_round_trip():
    assert CompressionReport.from_dict(json.loads(json.dumps(report().to_dict()))) == report()


def test_to_dict_can_be_read():
    data = report().to_dict()
    assert (data["model_bytes_dense"], data["model_bytes"], data["ratio"]) == (5000, 3040, 5.0)
    assert data["compressed"]["stored_bytes"] == 240
    assert data["layers"]["a"]["plan"] == {
        "format": "low_rank",
        "in_features": 32,
        "out_features": 48,
        "rank": 8,
    }
    assert data["layers"]["b"]["activation_error"] == 0.125


def test_sums_in_a_file_are_not_believed():
    data = report().to_dict() | {"ratio": 99}
    assert CompressionReport.from_dict(data).ratio == 5.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": None}, "layers"),
        ({"layers": []}, "layers"),
        ({"layers": {"a": {}}}, "layer 'a'"),
        ({"layers": {"a": {"plan": 3}}}, "layer 'a'"),
        ({"model_bytes": None}, "model_bytes"),
        ({"layers": {}}, "layers is empty; expected at least one"),
        ({"model_bytes": 0}, "model_bytes 0; expected a whole number from 1"),
        ({"model_bytes_dense": "5"}, "model_bytes_dense '5'; expected a whole number from 1"),
    ],
    ids=str,
)
def test_refuses_other_data(change, message):
    data = {k: v for k, v in (report().to_dict() | change).items() if v is not None}
    with pytest.raises(ValueError, match=f"CompressionReport: .*{message}"):
        CompressionReport.from_dict(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objective": "beauty"}, "objective 'beauty'; expected one of"),
        ({"weight_error": "0.1"}, "weight_error '0.1'; expected a finite number from 0, or None"),
        ({"weight_error": float("nan")}, "weight_error nan; expected"),
        ({"activation_error": float("inf")}, "activation_error inf; expected"),
        ({"activation_error": 10**400}, "activation_error 1000"),
        ({"weight_error": -0.5}, "weight_error -0.5; expected"),
        ({"dense": {}}, "dense: missing"),
        ({"dense": Counts(1, 1, 1, 0, 1).__dict__}, "dense: stored_bytes 0; expected"),
        ({"compressed": Counts(1, 1, 1, 10**400, 1).__dict__}, "compressed: stored_bytes 1000"),
        ({"compressed": Counts(1, 1, 1, 1, -1).__dict__}, "compressed: flops_per_token -1"),
        ({"compressed": Counts(1, 2.5, 1, 1, 1).__dict__}, "nonzeros 2.5"),  # type: ignore[arg-type]
    ],
    ids=lambda case: str(case)[:70],
)
def test_refuses_other_layers(change, message):
    data = report().to_dict()
    data["layers"]["a"] |= change
    with pytest.raises(ValueError, match=f"CompressionReport: layer 'a': .*{message}"):
        CompressionReport.from_dict(data)


@FEW
@given(
    data=damaged({k: v for k, v in report().to_dict().items() if k in ("layers", "model_bytes")})
)
def test_reads_what_is_there_or_names_what_is_wrong(data):
    data["model_bytes_dense"] = 5000
    try:
        read = CompressionReport.from_dict(data)
    except ValueError as error:
        message = str(error)
    else:
        assert all(same(read.to_dict()[name], data[name]) for name in data if name != "ratio")
        return
    assert message.startswith("CompressionReport: ")
