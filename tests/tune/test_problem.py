from functools import partial

import pytest

from lada_kernels.variants import Variant
from lada_ops.latency import Rotation
from lada_ops.tune import Case
from lada_ops.tune.problem import CHECKED_ROWS, Problem
from tests.tune.test_operands import CASES, CPU


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_dense_product_gives_the_expected_output(case):
    problem = Problem.draw(case, CPU)
    candidate = problem.candidate(Variant("dense"), l2_bytes=1)
    assert candidate.error(candidate.calls[0](), candidate.expect()) < 1e-5


@pytest.mark.parametrize("epilogue", ["plain", "fused", "norm"])
def test_a_dense_feed_forward_gives_the_expected_output(epilogue):
    problem = Problem.draw(Case(32, 48, "r32-64-r32", epilogue, 8, "float32"), CPU)
    candidate = problem.candidate(Variant("dense"), l2_bytes=1)
    assert candidate.error(candidate.calls[0](), candidate.expect()) < 1e-5


def test_checked_rows_are_spread_from_the_first_to_the_last():
    case = Case(16, 16, "r32", "plain", 4 * CHECKED_ROWS, "float32")
    problem = Problem.draw(case, CPU)
    assert problem.expected.shape == (CHECKED_ROWS, 16)
    assert (problem.rows[0], problem.rows[-1]) == (0, case.tokens - 1)
    assert (problem.rows.diff() > 0).all()


def test_a_wrong_checked_row_is_an_error():
    problem = Problem.draw(CASES[0], CPU)
    candidate = problem.candidate(Variant("dense"), l2_bytes=1)
    output = candidate.calls[0]()
    output[-1] += 1
    with pytest.raises(RuntimeError, match="no time is reported"):
        candidate.error(output, candidate.expect())


def test_copies_overflow_the_cache_and_share_nothing():
    problem = Problem.draw(CASES[0], CPU)
    touched = 4 * (8 * 32 + 32 * 48 + 48 + 8 * 48)  # x, weight, bias and output
    rotation = problem.candidate(Variant("dense"), l2_bytes=10 * touched).run
    assert isinstance(rotation, Rotation)
    assert len(rotation.calls) == 30
    weights = {
        call.keywords["weight1"].data_ptr() for call in rotation.calls if isinstance(call, partial)
    }
    assert len(weights) == 30
