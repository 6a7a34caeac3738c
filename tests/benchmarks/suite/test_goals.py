"""Goals, met or missed by rows."""

import pytest

from benchmarks.suite.cases import SuiteCase
from benchmarks.suite.goals import GOALS
from tests.benchmarks.suite.row_builders import low_rank, row, sparse, timing

FRACTION, OVER_TWO, FASTER, NEVER_SLOWER, OVER_BSR, LOW_RANK_NEVER_SLOWER, FFN = GOALS


def outcome(goal, *rows):
    return goal.outcome({goal.stem: {str(i): row for i, row in enumerate(rows)}})


def test_without_rows_nothing_is_claimed():
    assert all(goal.outcome({})[0] == "not measured" for goal in GOALS)


def test_a_row_that_died_counts_for_no_goal():
    dead = {"failed": {"all": "the process ended"}}
    assert all(outcome(goal, dead)[0] == "not measured" for goal in GOALS)


@pytest.mark.parametrize(("fraction", "want"), [(0.85, "met"), (0.84, "missed")])
def test_the_share_of_the_roofline(fraction, want):
    measured = row(low_rank(), timing("one_launch", 30, fraction=fraction))
    assert outcome(FRACTION, measured)[0] == want


def test_one_row_below_misses_for_all():
    good = row(low_rank(), timing("one_launch", 30, fraction=0.9))
    bad = row(low_rank(rank=128), timing("one_launch", 30, fraction=0.3))
    assert outcome(FRACTION, good, bad)[0] == "missed"


@pytest.mark.parametrize(
    "case",
    [low_rank(tokens=2048), low_rank(rank=192), low_rank(backward=True)],
)
def test_rows_outside_a_goal_are_left_out(case):
    assert outcome(FRACTION, row(case, timing("one_launch", 30)))[0] == "not measured"


def test_a_failed_implementation_misses():
    assert outcome(FRACTION, row(low_rank(), one_launch="wrong"))[0] == "missed"


@pytest.mark.parametrize(("us", "want"), [(14.0, "met"), (13.9, "missed")])
def test_two_products_beside_one_launch(us, want):
    measured = row(low_rank(), timing("two products", us), timing("one_launch", 10.0))
    assert outcome(OVER_TWO, measured)[0] == want


@pytest.mark.parametrize(("speedup", "want"), [(1.0, "met"), (0.99, "missed")])
def test_dense_is_compared_within_rounds(speedup, want):
    # the medians say the contrary
    measured = row(sparse(), timing("dense", 1.0), timing("one_launch", 5.0, speedup))
    assert outcome(FASTER, measured)[0] == want


def test_blocks_above_the_density_of_the_goal_are_left_out():
    measured = row(sparse(50), timing("dense", 1.0), timing("one_launch", 5.0, 0.2))
    assert outcome(FASTER, measured)[0] == "not measured"


@pytest.mark.parametrize("goal", [NEVER_SLOWER, LOW_RANK_NEVER_SLOWER])
def test_dispatch_is_slower_only_if_its_upper_quartile_is(goal):
    case = sparse(50, 16) if goal is NEVER_SLOWER else low_rank(16)
    for q75, want in ((1.0, "met"), (0.97, "missed")):
        measured = row(case, timing("dense", 1.0), timing("dispatch", 1.0, 0.95, q75))
        assert outcome(goal, measured)[0] == want


def test_torch_bsr_beside_the_dispatch():
    measured = row(sparse(50), timing("torch BSR", 15.0), timing("dispatch", 10.0))
    assert outcome(OVER_BSR, measured) == ("met", [("0", pytest.approx(1.5))])


def test_the_feed_forward():
    case = SuiteCase(768, 768, "r64-3072-r64", "norm", 8192)
    measured = row(case, timing("dense", 100.0), timing("dispatch", 33.0, 3.01))
    assert outcome(FFN, measured)[0] == "met"
