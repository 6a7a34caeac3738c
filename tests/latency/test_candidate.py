import itertools

import pytest
import torch

from lada_ops.latency import Candidate, WrongOutput, compare
from tests.latency.fakes import RIGHT, FakeClock, candidate, right_for


def test_right_candidates_are_timed():
    found = compare([candidate("a"), candidate("b")], baseline="a", rounds=3, quiet=True)
    assert found["b"].seconds.median > 0
    assert found["b"].samples == 3


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (RIGHT + 1e-2, "off by"),
        (RIGHT.clone().index_fill_(0, torch.tensor(1), 0.0), "off by"),
        (RIGHT.clone().fill_(float("nan")), "NaN or infinity"),
        (RIGHT / 0.0, "NaN or infinity"),
        (RIGHT[:2], r"output is \(2, 4\), expected \(3, 4\)"),
        (RIGHT[..., None], "output is"),
    ],
    ids=["close", "one row lost", "nan", "inf", "rows missing", "broadcastable"],
)
def test_a_wrong_output_is_refused_before_anything_is_timed(output, message):
    clock = FakeClock()
    with pytest.raises(WrongOutput, match=message) as caught:
        compare([candidate("a"), candidate("b", output)], baseline="a", clock=clock, quiet=True)
    assert caught.value.candidate == "b"
    assert clock.samples == 0


def test_a_wrong_output_tells_error_and_tolerance():
    with pytest.raises(WrongOutput, match=r"'a': output is off by 1.00e-01, tolerance 1.00e-02"):
        compare([candidate(output=RIGHT * 1.1, tolerance=1e-2)], baseline="a", quiet=True)


def test_a_wrong_copy_among_right_ones_is_refused():
    runs = [lambda: RIGHT, lambda: -RIGHT, lambda: RIGHT]
    with pytest.raises(WrongOutput):
        compare([candidate(run=runs)], baseline="a", quiet=True)


@pytest.mark.parametrize("after", [-RIGHT, RIGHT * float("nan"), RIGHT[:1]])
def test_an_output_gone_stale_while_timing_is_refused(after):
    stale = candidate("b", run=right_for(5, after))
    with pytest.raises(WrongOutput, match="'b'"):
        compare([candidate("a"), stale], baseline="a", clock=FakeClock(), quiet=True)


def test_a_buffer_overwritten_while_timing_is_refused():
    buffer = RIGHT.clone()
    calls = itertools.count()

    def run_b():
        if next(calls) == 8:
            buffer.zero_()
        return RIGHT

    candidates = [candidate("a", buffer), candidate("b", run=run_b)]
    with pytest.raises(WrongOutput, match="'a'"):
        compare(candidates, baseline="a", clock=FakeClock(), quiet=True)


def test_the_tolerance_is_relative_to_the_output():
    tiny = Candidate("a", lambda: RIGHT * 1.1e-6, RIGHT * 1e-6)
    with pytest.raises(WrongOutput):
        compare([tiny], baseline="a", quiet=True)


def test_a_row_of_zeros_is_held_to_the_scale_of_the_others():
    expected = RIGHT.clone().index_fill_(0, torch.tensor(1), 0.0)
    found = compare(
        [Candidate("a", lambda: expected + 1e-6, expected)], baseline="a", rounds=1, quiet=True
    )
    assert 0 < found["a"].error < 1e-5


def test_all_zeros_expected_allow_nothing_but_zeros():
    zeros = torch.zeros(3, 4)
    compare([Candidate("a", lambda: zeros, zeros)], baseline="a", rounds=1, quiet=True)
    with pytest.raises(WrongOutput):
        compare([Candidate("a", lambda: zeros + 1e-9, zeros)], baseline="a", quiet=True)


def test_the_default_tolerance_follows_the_dtype_of_the_output():
    rounded = Candidate("a", lambda: (RIGHT / 3).bfloat16(), RIGHT / 3)
    found = compare([rounded], baseline="a", rounds=1, quiet=True)["a"]
    assert (found.dtype, found.tolerance) == ("bfloat16", 6e-2)
    assert found.error > 1e-4


def test_read_picks_the_tensor_to_check():
    picked = candidate(run=lambda: {"hidden": RIGHT}, read=lambda output: output["hidden"])
    assert compare([picked], baseline="a", rounds=1, quiet=True)["a"].error == 0


def test_expected_may_be_computed_when_needed():
    late = Candidate("a", lambda: RIGHT, lambda: RIGHT.double())
    assert compare([late], baseline="a", rounds=1, quiet=True)["a"].error == 0


@pytest.mark.parametrize("output", [3.0, None, [RIGHT], torch.arange(3)])
def test_an_output_that_is_no_floating_point_tensor_is_a_type_error(output):
    with pytest.raises(TypeError, match=r"'a': output is .*expected a floating-point tensor"):
        compare([candidate(output=output)], baseline="a", quiet=True)


@pytest.mark.parametrize("expected", [RIGHT * float("nan"), torch.zeros(0, 4)])
def test_an_expected_output_that_proves_nothing_is_a_value_error(expected):
    with pytest.raises(ValueError, match="nothing to hold it to"):
        compare([Candidate("a", lambda: expected, expected)], baseline="a", quiet=True)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"name": ""}, ValueError, "name is empty"),
        ({"run": []}, TypeError, "expected a callable"),
        ({"run": [len, 3]}, TypeError, "expected a callable"),
        ({"tolerance": 0.0}, ValueError, "tolerance 0.0; expected a positive"),
        ({"tolerance": float("nan")}, ValueError, "tolerance nan"),
    ],
)
def test_bad_candidates_are_refused(kwargs, error, message):
    with pytest.raises(error, match=message):
        candidate(**kwargs)
