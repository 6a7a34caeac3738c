import json
import logging

import pytest
import torch
from torch import nn

from lada_kernels.cpu import linear
from lada_ops import BlockSparseLinear, LowRankLinear, optimize
from lada_ops.engine.cpu import choice
from lada_ops.engine.cpu.choice import choose
from lada_ops.engine.optimize import DTYPES
from lada_ops.modules.packed_linear import PackedLinear
from tests.properties import NO_JSON

FP32 = torch.float32


@pytest.fixture
def measured(monkeypatch):
    """List of the measured (sources, dtype), with the ratio that each measurement returns."""

    class Measured(list):
        ratio = 2.0

    calls = Measured()

    def measure(sources, dtype):
        calls.append((tuple(sources), dtype))
        return calls.ratio

    monkeypatch.setattr(choice, "_measured_ratio", measure)
    return calls


def large_factors():
    return LowRankLinear(64, 64, 28)


@pytest.mark.parametrize(
    ("ratio", "why"),
    [
        (0.8, "multiplied out, measured 1.25 times as fast as compressed"),
        (1.1, "compressed, measured 1.10 times as fast as dense"),
    ],
)
def test_the_measured_ratio_decides(measured, ratio, why):
    measured.ratio = ratio
    assert choose([large_factors()], FP32) == (ratio < 1, why)


@pytest.mark.parametrize("sources", [[nn.Linear(8, 8)], [LowRankLinear(64, 64, 8)]], ids=repr)
def test_dense_and_small_weights_are_not_measured(measured, sources):
    assert not choose(sources, FP32).dense
    assert measured == []


def test_measured_ratios_are_cached(measured, cache_folder):
    for _ in range(3):
        choose([large_factors()], FP32)
    assert len(measured) == 1
    (file,) = cache_folder.glob("cpu-*.json")
    assert list(json.loads(file.read_text()).values()) == [2.0]


@pytest.mark.parametrize(
    "other",
    [
        lambda: ([LowRankLinear(64, 64, 30)], FP32),
        lambda: ([LowRankLinear(64, 96, 28)], FP32),
        lambda: ([BlockSparseLinear(64, 64, (16, 16), 0.9)], FP32),
        lambda: ([large_factors(), large_factors()], FP32),
        lambda: ([large_factors()], torch.bfloat16),
    ],
    ids=["rank", "size", "format", "merged", "dtype"],
)
def test_other_weights_are_measured_anew(measured, other):
    choose([large_factors()], FP32)
    choose(*other())
    assert len(measured) == 2


def test_other_threads_are_measured_anew(measured):
    before = torch.get_num_threads()
    choose([large_factors()], FP32)
    torch.set_num_threads(before + 1)
    choose([large_factors()], FP32)
    torch.set_num_threads(before)
    assert len(measured) == 2


RATIOS = ["0", "-1", "1" + 400 * "0", "1e999", "NaN", "true", "null", '"2"', "[]", "{}", "5e-324"]


@pytest.mark.parametrize(
    "content",
    [*NO_JSON, b"[1]", b"null", b"2", *(b'{"KEY": %s}' % ratio.encode() for ratio in RATIOS)],
    ids=lambda content: content[:14],
)
def test_a_damaged_file_is_rewritten(measured, cache_folder, content, caplog):
    choose([large_factors()], FP32)
    (file,) = cache_folder.glob("cpu-*.json")
    (key,) = json.loads(file.read_text())
    file.write_bytes(content.replace(b"KEY", key.encode()))
    with caplog.at_level(logging.WARNING, "lada_ops"):
        choice = choose([large_factors()], FP32)
    assert choice == (False, "compressed, measured 2.00 times as fast as dense")
    assert "is ignored and written anew" in caplog.text
    assert list(json.loads(file.read_text()).values()) == [2.0]


def test_an_unwritable_cache_folder_is_a_warning(measured, cache_folder, caplog):
    cache_folder.write_text("a file in its place")
    with caplog.at_level(logging.WARNING, "lada_ops"):
        assert not choose([large_factors()], FP32).dense
    assert "cannot remember what was measured" in caplog.text


def test_a_folder_in_the_place_of_the_cache_file_is_a_warning(measured, cache_folder, caplog):
    choose([large_factors()], FP32)
    (file,) = cache_folder.glob("cpu-*.json")
    file.unlink()
    file.mkdir()
    with caplog.at_level(logging.WARNING, "lada_ops"):
        assert not choose([large_factors()], FP32).dense
    assert "cannot remember what was measured" in caplog.text
    assert list(cache_folder.iterdir()) == [file]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_ratio_is_measured(monkeypatch, dtype):
    run = linear.packed_linear_fwd

    def checked(packed, x):
        assert x.dtype == packed.io_dtype  # the kernel would read past the end of another
        return run(packed, x)

    monkeypatch.setattr(linear, "packed_linear_fwd", checked)
    assert 0 < choice._measured_ratio([large_factors()], dtype) < 100


def test_a_linear_that_is_faster_dense_runs_dense_and_keeps_its_factors(measured):
    measured.ratio = 0.5
    model = nn.Sequential(large_factors())
    x = torch.randn(5, 64)
    with torch.no_grad():
        want = model(x)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    optimize(model)
    torch.testing.assert_close(model(x), want, rtol=1e-4, atol=1e-5)
    (linear,) = model
    assert isinstance(linear, PackedLinear)
    assert linear.packed.ranks == (0,)
    assert "dense" in repr(linear)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)
