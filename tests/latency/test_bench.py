"""Models that cannot be served, or not correctly, are missing; the others are timed."""

import copy

import pytest
import torch
from transformers import BertModel

import lada_ops
from lada_cli import tables
from lada_ops.engine.optimize import DTYPES
from lada_ops.latency import WrongOutput
from lada_ops.latency.bench import NO_LIBRARY, SLOW, ServedModels
from tests.tiny_model import tiny_config

SIZES = {"1x16": (1, 16), "2x8": (2, 8)}


@pytest.fixture
def bench():
    """A dense model, a compressed one, and the compressed one as it is served."""
    torch.manual_seed(0)
    dense = BertModel(tiny_config()).eval()
    model = copy.deepcopy(dense)
    lada_ops.compress(model, 2, "low_rank")
    served = copy.deepcopy(model)
    return ServedModels(
        "x", dense, {"compressed": model, "optimized": served}, {"optimized": model}
    )


def spoil(model):
    with torch.no_grad():
        model.encoder.layer[1].output.LayerNorm.bias += 9


def test_a_served_model_that_is_off_is_missing_and_the_others_are_timed(bench):
    spoil(bench.models["optimized"])
    found = bench.shapes(SIZES, rounds=1)
    assert [c["label"] for c in found["comparisons"]] == list(SIZES)
    for comparison in found["comparisons"]:
        assert [t["name"] for t in comparison["timings"]] == ["dense", "compressed"]
        assert "output is off by" in comparison["missing"]["optimized"]
    assert "missing: optimized: output is off by" in str(tables.latency(found).caption)


@pytest.mark.parametrize("fast", [(), DTYPES[:1], DTYPES], ids=["none", "fp32", "all"])
def test_a_dtype_that_is_not_served_here_is_missing_with_the_reason(fast, bench, monkeypatch):
    monkeypatch.setattr("lada_ops.latency.bench.fast_dtypes", lambda: fast)
    made = ServedModels.of_models("x", bench.dense, bench.models["compressed"])
    named = {f"optimized, {str(dtype).removeprefix('torch.')}": dtype for dtype in DTYPES}
    assert list(made.models) == ["compressed", *(n for n, dtype in named.items() if dtype in fast)]
    reason = SLOW if fast else NO_LIBRARY
    assert made.missing == {name: reason for name, dtype in named.items() if dtype not in fast}


def test_a_model_that_cannot_be_optimized_is_missing_with_the_reason(bench, monkeypatch):
    def refuse(*_):
        raise TypeError("optimize: no")

    monkeypatch.setattr("lada_ops.latency.bench.fast_dtypes", lambda: DTYPES[:1])
    monkeypatch.setattr("lada_ops.latency.bench.optimize", refuse)
    made = ServedModels.of_models("x", bench.dense, bench.models["compressed"])
    found = made.shapes({"1x16": (1, 16)}, rounds=1)
    caption = str(tables.latency(found).caption)
    assert "missing: optimized, float32: optimize: no" in caption
    assert f"missing: optimized, bfloat16; optimized, int8: {SLOW}" in caption


def test_nothing_is_missing_where_all_are_right(bench):
    found = bench.shapes(SIZES, rounds=1)
    assert [t["name"] for t in found["comparisons"][0]["timings"]] == [
        *("dense", "compressed", "optimized")
    ]
    assert found["comparisons"][0]["missing"] == {}


def test_a_compressed_model_that_is_off_is_refused(bench, monkeypatch):
    def refuse(*_, **__):
        raise WrongOutput("compressed", "output is off", 1.0, 0.1)

    monkeypatch.setattr("lada_ops.latency.models.compare_models", refuse)
    with pytest.raises(WrongOutput, match="compressed"):
        bench.shapes(SIZES, rounds=1)
