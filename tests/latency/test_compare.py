import gc
import itertools
from collections import Counter

import pytest
import torch

from lada_ops.latency import Quartiles, compare
from tests.latency.fakes import RIGHT, FakeClock, candidate


def orders_of(names, rounds):
    """Order of the timed calls in each round."""
    seen = []
    candidates = [candidate(n, run=lambda n=n: (seen.append(n), RIGHT)[1]) for n in names]
    compare(candidates, baseline=names[0], rounds=rounds, warmup=1, clock=FakeClock(), quiet=True)
    timed = seen[2 * len(names) :]
    return [timed[i : i + len(names)] for i in range(0, len(timed), len(names))]


def test_every_round_times_every_candidate_once():
    orders = orders_of("abcd", rounds=9)
    assert len(orders) == 9
    assert all(sorted(order) == list("abcd") for order in orders)


@pytest.mark.parametrize("names", ["ab", "abcd"])
def test_each_candidate_goes_before_each_other_as_often_as_after(names):
    orders = orders_of(names, rounds=8)
    for first, second in itertools.combinations(names, 2):
        assert sum(order.index(first) < order.index(second) for order in orders) == 4


def test_no_candidate_always_follows_the_same_one():
    orders = orders_of("abcd", rounds=8)
    neighbours = Counter(pair for order in orders for pair in itertools.pairwise(order))
    assert all(len({a for a, b in neighbours if b == name}) == 3 for name in "abcd")


def drifting(clock, cost_by_call):
    calls = itertools.count()

    def run():
        clock.spend(cost_by_call(next(calls)))
        return RIGHT

    return run


def test_the_ratio_is_paired_within_rounds():
    """A slowdown of 1, 2, 4, ...: the ratio within rounds is 2, that of unpaired samples more."""
    clock = FakeClock()
    # two calls, the check and the warm-up, come before the first round
    slow = drifting(clock, lambda call: 2.0**call)
    fast = drifting(clock, lambda call: 2.0**call / 2)
    found = compare(
        [candidate("slow", run=slow), candidate("fast", run=fast)],
        baseline="slow",
        rounds=8,
        warmup=1,
        clock=clock,
        quiet=True,
    )
    assert found["fast"].speedup == Quartiles(2.0, 2.0, 2.0)


def test_the_median_of_ratios_stands_where_the_ratio_of_medians_falls():
    """Seconds per round: baseline 2, 4, 60, candidate 1, 20, 30."""
    clock = FakeClock()
    base = drifting(clock, lambda call: [0, 0, 2.0, 4.0, 60.0][call])
    other = drifting(clock, lambda call: [0, 0, 1.0, 20.0, 30.0][call])
    found = compare(
        [candidate("base", run=base), candidate("other", run=other)],
        baseline="base",
        rounds=3,
        warmup=1,
        clock=clock,
        quiet=True,
    )
    assert found["base"].seconds.median / found["other"].seconds.median == pytest.approx(0.2)
    assert found["other"].speedup.median == 2.0


def test_statistics_are_those_of_the_samples():
    clock = FakeClock()
    costs = [9.0, 9.0, 5.0, 1.0, 4.0, 2.0, 3.0]
    run = drifting(clock, costs.__getitem__)
    found = compare(
        [candidate(run=run)], baseline="a", rounds=5, warmup=1, clock=clock, quiet=True
    )["a"]
    assert found.seconds == Quartiles(2.0, 3.0, 4.0)
    assert found.min_seconds == 1.0


def test_short_calls_are_repeated_until_a_sample_lasts_long_enough():
    clock = FakeClock(min_sample_seconds=1e-3)
    run = drifting(clock, lambda call: 0.9e-4)
    found = compare([candidate(run=run)], baseline="a", rounds=2, clock=clock, quiet=True)["a"]
    assert found.calls_per_sample == 12
    assert found.seconds.median == pytest.approx(0.9e-4)


def test_a_disturbed_warm_up_does_not_shorten_the_samples():
    clock = FakeClock(min_sample_seconds=1e-3)
    run = drifting(clock, lambda call: 1.0 if call in (1, 3) else 1e-4)
    found = compare([candidate(run=run)], baseline="a", rounds=2, warmup=3, clock=clock, quiet=True)
    assert found["a"].calls_per_sample >= 10


def test_a_call_that_warms_up_slowly_still_fills_its_samples():
    clock = FakeClock(min_sample_seconds=1e-3)
    run = drifting(clock, lambda call: 1e-3 if call < 2 else 5e-4 if call < 4 else 1e-4)
    found = compare([candidate(run=run)], baseline="a", rounds=2, warmup=2, clock=clock, quiet=True)
    assert found["a"].calls_per_sample > 2


def test_copies_are_rotated_through_across_samples():
    used = Counter()
    runs = [lambda i=i: (used.update([i]), RIGHT)[1] for i in range(4)]
    found = compare(
        [candidate(run=runs)], baseline="a", rounds=6, warmup=2, clock=FakeClock(), quiet=True
    )
    assert found["a"].copies == 4
    assert set(used.values()) == {3}  # one check, then 2 + 6 calls over 4 copies


def test_calls_run_without_gradients_and_garbage_collection():
    states = []

    def run():
        states.append((torch.is_grad_enabled(), gc.isenabled()))
        return RIGHT

    compare([candidate(run=run)], baseline="a", rounds=2, warmup=1, clock=FakeClock(), quiet=True)
    assert states == [(False, True), (False, False), (False, False), (False, False)]
    assert gc.isenabled()


def test_threads_are_set_while_timing_and_put_back():
    before = torch.get_num_threads()
    seen = set()

    def run():
        seen.add(torch.get_num_threads())
        return RIGHT

    found = compare([candidate(run=run)], baseline="a", rounds=1, threads=before + 1, quiet=True)
    assert seen == {before + 1}
    assert torch.get_num_threads() == before
    assert found.settings["threads"] == found.environment["torch_threads"] == before + 1


@pytest.mark.parametrize("when", [0, 3], ids=["while checking", "while timing"])
def test_an_exception_puts_threads_and_garbage_collection_back(when):
    before = torch.get_num_threads()
    counter = itertools.count()

    def run():
        if next(counter) == when:
            raise OSError("gone")
        return RIGHT

    with pytest.raises(OSError, match="gone"):
        compare([candidate(run=run)], baseline="a", threads=before + 1, quiet=True)
    assert torch.get_num_threads() == before
    assert gc.isenabled()


def test_nothing_is_printed_where_nobody_watches(capfd):
    compare([candidate()], baseline="a", rounds=1)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("names", "kwargs", "message"),
    [
        ("", {}, "candidates is empty"),
        ("aa", {}, r"candidates are named \['a', 'a'\]; expected distinct"),
        ("ab", {"baseline": "c"}, r"baseline 'c'; expected one of \['a', 'b'\]"),
        ("a", {"rounds": 0}, "rounds is 0; expected at least 1"),
        ("a", {"warmup": 0}, "warmup is 0; expected at least 1"),
        ("a", {"threads": 0}, "threads is 0; expected at least 1"),
    ],
)
def test_bad_arguments_are_named(names, kwargs, message):
    with pytest.raises(ValueError, match=message):
        compare([candidate(n) for n in names], **{"baseline": "a", "quiet": True, **kwargs})
