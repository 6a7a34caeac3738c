"""One row: what is right is timed, what is not becomes a reason."""

import pytest
import torch

from benchmarks.suite.cases import Case
from benchmarks.suite.measure import (
    MAX_REASON,
    Bench,
    DeviceLost,
    Launched,
    check_device,
    measure,
    reason,
)
from benchmarks.suite.problem import Entry, Problem
from lada_ops.latency import Rotation
from lada_ops.machine_code.roofline import Ceilings
from tests.latency.fakes import FakeClock

CASE = Case("low_rank_linear", 3, 4, 4, rank=2)
X = torch.arange(1.0, 13.0).reshape(3, 4)
Y = 2 * X
CEILINGS = Ceilings(flops_per_second=1e3, bytes_per_second=1e3)


def bench(**changes):
    given = {"l2_bytes": 0, "ceilings": CEILINGS, "rounds": 3} | changes
    return Bench(given.pop("device", torch.device("cpu")), FakeClock(), **given)


def entry(call=lambda x: 2 * x, **changes):
    return Entry(call, {"x": X.clone()}, macs=10, **changes)


def row(l2_bytes=0, **ways):
    problem = Problem(CASE, Y.double(), {"dense": entry} | ways, output_bytes=48)
    return measure(problem, torch.float32, bench(l2_bytes=l2_bytes))


def fails():
    raise NotImplementedError("no\n  such block")


def test_every_right_way_is_timed_beside_dense():
    got = row(other=entry)
    assert list(got["timings"]) == ["dense", "other"]
    assert got["timings"]["other"]["speedup_median"] == 1.0
    assert got["failed"] == {}
    assert got["case"]["stem"] == "low_rank_linear"
    assert got["settings"]["rounds"] == 3


def test_a_timing_carries_what_it_achieved():
    # 2 x 10 weight elements x 3 tokens; x and y of 48 bytes; the fake call takes a second
    got = row()["timings"]["dense"]
    assert got["tflops"] == 60 / 1e12
    assert got["gigabytes_per_second"] == 96 / 1e9
    assert got["roofline_fraction"] == 0.096


@pytest.mark.parametrize(
    ("way", "why"),
    [
        (fails, "NotImplementedError: no such block"),
        (lambda: entry(lambda x: fails()), "NotImplementedError: no such block"),
        (lambda: entry(lambda x: 2.1 * x), "off by 5.00e-02"),
        (lambda: entry(lambda x: x * float("nan")), "NaN"),
        (lambda: entry(lambda x: x[:2]), "output is (2, 4), expected (3, 4)"),
    ],
)
def test_a_way_that_is_not_right_is_a_reason_and_the_others_go_on(way, why):
    got = row(bad=way, good=entry)
    assert list(got["timings"]) == ["dense", "good"]
    assert why in got["failed"]["bad"]


def test_a_way_that_is_wrong_on_poisoned_memory_is_a_reason():
    calls = iter(range(100))
    got = row(bad=lambda: entry(lambda x: 2 * x if next(calls) else x))
    assert "off by" in got["failed"]["bad"]


def test_a_way_that_goes_wrong_while_it_is_timed_is_a_reason():
    calls = iter(range(100))
    got = row(bad=lambda: entry(lambda x: 2 * x if next(calls) < 2 else x), good=entry)
    assert list(got["timings"]) == ["dense", "good"]
    assert "off by" in got["failed"]["bad"]


def test_without_dense_there_are_no_ratios_and_no_times():
    got = row(dense=fails, good=entry)
    assert "timings" not in got
    assert list(got["failed"]) == ["dense"]


def test_a_way_with_weights_of_its_own_is_held_to_its_own_answer():
    got = row(own=lambda: entry(lambda x: 3 * x, expected=3 * X))
    assert "own" in got["timings"]


def test_what_is_read_is_what_is_checked():
    got = row(pair=lambda: entry(lambda x: (x, 2 * x), read=lambda pair: pair[1]))
    assert "pair" in got["timings"]


def test_notes_are_kept():
    assert row(noted=lambda: entry(note={"meta": 7}))["timings"]["noted"]["meta"] == 7


def test_copies_overflow_the_cache():
    # three times 960 bytes, by 96 per call
    assert row(l2_bytes=960)["timings"]["dense"]["copies"] == 30


def test_each_copy_has_operands_of_its_own():
    seen = set()
    row(l2_bytes=96, other=lambda: entry(lambda x: seen.add(x.data_ptr()) or 2 * x))
    assert len(seen) == 3


def test_before_its_first_call_the_memory_of_a_way_is_poisoned(monkeypatch):
    events, full = [], torch.full

    def recorded(size, value, **kwargs):
        events.append("poison" if value != value and size[0] * 2 == 48 else "other")
        return full(size, value, **kwargs)

    monkeypatch.setattr(torch, "full", recorded)
    row(way=lambda: entry(lambda x: events.append("call") or 2 * x))
    assert events[events.index("call") - 1] == "poison"


def test_a_way_that_is_launched_call_by_call_says_so(monkeypatch):
    assert row()["timings"]["dense"]["launched"] is False
    monkeypatch.setattr("benchmarks.suite.measure._rotation", lambda calls, bench: Launched(calls))
    assert row()["timings"]["dense"]["launched"] is True


def test_a_spare_operand_is_no_work():
    spare = Entry(lambda x, dense: 2 * x, {"x": X, "dense": X}, macs=10)
    assert spare.work(3, 48) == entry().work(3, 48)


def test_a_reason_is_one_short_line():
    text = reason(ValueError("a\nb" * 1000))
    assert len(text) == MAX_REASON
    assert "\n" not in text


class TestOnCuda:
    """The helpers that only CUDA needs, with CUDA replaced."""

    CUDA = torch.device("cuda")

    @pytest.fixture
    def synchronized(self, monkeypatch):
        calls = []
        monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: calls.append("synchronize"))
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append("empty_cache"))
        monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
        monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", self.modes.append)
        return calls

    @pytest.fixture(autouse=True)
    def _no_modes(self):
        self.modes = []

    def test_an_error_that_leaves_the_gpu_well_frees_its_memory(self, synchronized):
        check_device("peer", RuntimeError("out of memory"), bench(device=self.CUDA))
        assert synchronized == ["synchronize", "empty_cache"]

    def test_an_error_that_does_not_names_its_way(self, monkeypatch):
        def lost(*_):
            raise RuntimeError("an illegal memory access was encountered")

        monkeypatch.setattr(torch.cuda, "synchronize", lost)
        with pytest.raises(DeviceLost, match="peer: RuntimeError: first") as caught:
            check_device("peer", RuntimeError("first"), bench(device=self.CUDA))
        assert caught.value.way == "peer"

    def test_a_way_that_no_graph_can_hold_is_launched_call_by_call(self, synchronized, monkeypatch):
        def cannot(self):
            raise RuntimeError("operation not permitted when stream is capturing")

        from benchmarks.suite import measure as module

        monkeypatch.setattr(Rotation, "replay", cannot)
        rotation = module._rotation([lambda: 7], bench(device=self.CUDA))
        assert isinstance(rotation, Launched)
        rotation.replay()
        assert rotation.output == 7

    def test_a_way_that_waits_is_not_captured(self, synchronized, monkeypatch):
        from benchmarks.suite import measure as module

        def waits():
            raise RuntimeError("called a synchronizing CUDA operation")

        monkeypatch.setattr(Rotation, "replay", lambda self: pytest.fail("captured"))
        assert isinstance(module._rotation([waits], bench(device=self.CUDA)), Launched)
        assert self.modes == ["error", 0]

    def test_a_way_that_fails_otherwise_is_not_launched(self, synchronized):
        from benchmarks.suite import measure as module

        with pytest.raises(NotImplementedError):
            module._rotation([fails], bench(device=self.CUDA))
        assert self.modes == ["error", 0]

    def test_a_capture_that_spoils_the_allocator_loses_the_device(self, synchronized, monkeypatch):
        from benchmarks.suite import measure as module

        def spoilt(*_):
            raise RuntimeError("captures_underway.empty() INTERNAL ASSERT FAILED")

        monkeypatch.setattr(Rotation, "replay", spoilt)
        monkeypatch.setattr(torch.cuda, "empty_cache", spoilt)
        with pytest.raises(DeviceLost):
            module._rotation([lambda: 7], bench(device=self.CUDA))

    def test_launched_makes_as_many_calls_as_a_replay(self):
        calls = []
        rotation = Launched([lambda: calls.append(1)])
        rotation.replay()
        assert len(calls) == rotation.count
