"""Time budget of the GPU suite."""

import pytest

from benchmarks.suite.budget import FIRST, MARGIN, SHARES, WINDOW, Budget, Pace, seconds_for


class TestBudget:
    def test_seconds_fit_up_to_the_deadline(self):
        budget = Budget(deadline=100.0, now=lambda: 70.0)
        assert budget.left() == 30.0
        assert budget.fits(30.0)
        assert not budget.fits(30.1)

    def test_nothing_fits_after_the_deadline(self):
        assert not Budget(deadline=100.0, now=lambda: 101.0).fits(0.0)

    def test_time_passes(self):
        now = iter([10.0, 20.0])
        budget = Budget(deadline=100.0, now=lambda: next(now))
        assert [budget.left(), budget.left()] == [90.0, 80.0]


class TestPace:
    def test_the_first_row_of_a_kind_may_take_long(self):
        assert Pace().expected("new") == FIRST

    def test_the_slowest_of_its_kind_counts(self):
        pace = Pace()
        for kind, seconds in (("a", 2.0), ("a", 4.0), ("a", 1.0), ("b", 50.0)):
            pace.took(kind, seconds)
        assert pace.expected("a") == MARGIN * 4.0

    def test_old_rows_are_forgotten(self):
        pace = Pace()
        for seconds in (60.0, *[1.0] * WINDOW):
            pace.took("a", seconds)
        assert pace.expected("a") == MARGIN


class TestShares:
    def test_the_last_stage_takes_all_that_is_left(self):
        assert seconds_for("tests", ["tests"], 100.0) == 100.0

    @pytest.mark.parametrize("stage", ["tests", "kernels"])
    def test_a_stage_leaves_time_for_those_behind_it(self, stage):
        assert seconds_for(stage, [*SHARES], 100.0) == 100.0 * SHARES[stage] < 100.0
