"""Order, checks and ratios of a race, with fake contestants."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from benchmarks.rivals.contestants import EAGER
from benchmarks.rivals.race import Rules, likeness, orders, race
from benchmarks.rivals.setup import NotMeasured
from lada_ops.latency import WrongOutput
from tests.benchmarks.rivals.fakes import RIGHT, FakeRunner, contestant

RIVAL = contestant("rival")
WARM_UPS = 2


def race_of(runners, rounds=3, seconds=0.5):
    return race(runners, Path("ids.npy"), lambda contestant: RIGHT, Rules(rounds, seconds))


def test_every_round_times_every_contestant_once():
    log = []
    others = [contestant(name) for name in "abc"]
    race_of({c: FakeRunner(c.name, log) for c in (EAGER, *others)}, rounds=5)
    turns = [name for what, name in log if what == "time"][4 * WARM_UPS :]
    rounds = [turns[i : i + 4] for i in range(0, len(turns), 4)]
    assert len(rounds) == 5
    assert all(Counter(names) == Counter(["eager", "a", "b", "c"]) for names in rounds)


def test_orders_are_balanced_over_pairs():
    given = list(orders("abcd", 6))
    before = Counter((x, y) for order in given for i, x in enumerate(order) for y in order[i + 1 :])
    assert set(before.values()) == {3}


def test_ratios_are_taken_within_a_round():
    # the machine slows down ten times in the last two rounds, and the ratio stays 2
    slow = [4.0, 4.0, 4.0, 40.0, 40.0]
    eager = FakeRunner("eager", seconds=slow)
    rival = FakeRunner("rival", seconds=[s / 2 for s in slow])
    row = race_of({EAGER: eager, RIVAL: rival})[RIVAL]
    assert (row["speedup_q25"], row["speedup_median"], row["speedup_q75"]) == (2, 2, 2)
    assert row["median_seconds"] == 20


def test_a_sample_lasts_as_long_as_the_rules_say():
    row = race_of({EAGER: FakeRunner("eager", seconds=[0.1])}, seconds=0.5)[EAGER]
    assert (row["samples"], row["calls_per_sample"]) == (3, 5)


def test_a_wrong_output_gets_no_time():
    wrong = FakeRunner("rival", output=RIGHT + 0.01)
    rows = race_of({EAGER: FakeRunner("eager"), RIVAL: wrong})
    assert set(rows[RIVAL]) == {"not_measured"}
    assert "is off by" in rows[RIVAL]["not_measured"]
    assert wrong.calls == 1
    assert rows[EAGER]["speedup_median"] == 1


def test_an_output_that_goes_wrong_while_timed_gets_no_time():
    class Drifts(FakeRunner):
        def output(self):
            return RIGHT if self.calls == 1 else -RIGHT

    rows = race_of({EAGER: FakeRunner("eager"), RIVAL: Drifts("rival")})
    assert set(rows[RIVAL]) == {"not_measured"}


def test_a_contestant_that_dies_leaves_the_others_running():
    third = contestant("third")
    runners = {
        EAGER: FakeRunner("eager"),
        RIVAL: FakeRunner("rival", dies_after=WARM_UPS + 1),
        third: FakeRunner("third", seconds=[0.5]),
    }
    rows = race_of(runners)
    assert rows[RIVAL] == {"not_measured": "its process ended"}
    assert rows[third]["speedup_median"] == 2


def test_a_race_without_eager_is_not_measured():
    with pytest.raises(NotMeasured, match="eager"):
        race_of({EAGER: FakeRunner("eager", dies_after=0), RIVAL: FakeRunner("rival")})


class TestLikeness:
    def off_by(self, angle):
        """RIGHT with every row rotated by `angle` (radians)."""
        turned = np.roll(RIGHT, 1, axis=-1) * np.array([1, -1, 1, -1], dtype=np.float32)
        norm = np.linalg.norm(RIGHT, axis=-1, keepdims=True)
        along = (turned * RIGHT).sum(-1, keepdims=True) / norm**2
        side = turned - along * RIGHT
        side *= norm / np.linalg.norm(side, axis=-1, keepdims=True)
        return (np.cos(angle) * RIGHT + np.sin(angle) * side).astype(np.float32)

    def test_fp32_has_a_tolerance_of_1e_4(self):
        with pytest.raises(WrongOutput, match="off by"):
            likeness(contestant("x"), self.off_by(3e-4), RIGHT)

    def test_bf16_tolerates_rounding(self):
        error, cosine = likeness(contestant("x", "bf16"), self.off_by(0.05), RIGHT)
        assert error == pytest.approx(0.05, rel=1e-2)
        assert cosine == pytest.approx(np.cos(0.05), abs=1e-6)

    def test_bf16_has_a_least_cosine(self):
        with pytest.raises(WrongOutput, match="cosine"):
            likeness(contestant("x", "bf16"), self.off_by(0.2), RIGHT)

    def test_int8_is_reported_without_a_limit(self):
        assert likeness(contestant("x", "int8"), self.off_by(0.5), RIGHT)[1] < 0.9

    @pytest.mark.parametrize("wrong", [RIGHT * np.nan, RIGHT[:1]], ids=["NaN", "shape"])
    def test_int8_of_another_shape_or_not_finite_is_refused(self, wrong):
        with pytest.raises(WrongOutput):
            likeness(contestant("x", "int8"), wrong, RIGHT)
