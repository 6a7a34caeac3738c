"""Rows: right implementations are timed, others become a reason."""

import pytest
import torch

from benchmarks.suite.cases import SuiteCase
from benchmarks.suite.measure import DeviceLost, Launched, check_device, measure
from benchmarks.suite.workload import Implementation, Workload
from lada_ops.latency import Rotation
from lada_ops.machine_code.roofline import Ceilings
from lada_ops.tune import Bench
from lada_ops.tune.device import MAX_REASON, reason
from tests.latency.fakes import FakeClock

CASE = SuiteCase(4, 4, "r2", tokens=3, dtype="float32")
X = torch.arange(1.0, 13.0).reshape(3, 4)
Y = 2 * X
CEILINGS = Ceilings(flops_per_second=1e3, bytes_per_second=1e3)


def bench(device="cpu", l2_bytes=0):
    return Bench(torch.device(device), FakeClock(), l2_bytes, rounds=3)


def doubling(call=lambda x: 2 * x, **changes):
    return Implementation(call, {"x": X.clone()}, macs=10, **changes)


def row(l2_bytes=0, **implementations):
    workload = Workload(CASE, Y.double(), {"dense": doubling} | implementations, output_bytes=48)
    return measure(workload, bench(l2_bytes=l2_bytes), CEILINGS)


def fails():
    raise NotImplementedError("no\n  such block")


def test_right_implementations_are_timed_beside_dense():
    got = row(other=doubling)
    assert list(got["timings"]) == ["dense", "other"]
    assert got["timings"]["other"]["speedup_median"] == 1.0
    assert got["failed"] == {}
    assert got["case"]["stem"] == "low_rank_linear"
    assert got["settings"]["rounds"] == 3


def test_a_timing_has_its_rates():
    # 2 x 10 weight elements x 3 tokens; x and y of 48 bytes; the fake call takes a second
    got = row()["timings"]["dense"]
    assert got["tflops"] == 60 / 1e12
    assert got["gigabytes_per_second"] == 96 / 1e9
    assert got["roofline_fraction"] == 0.096


@pytest.mark.parametrize(
    ("implementation", "why"),
    [
        (fails, "NotImplementedError: no such block"),
        (lambda: doubling(lambda x: fails()), "NotImplementedError: no such block"),
        (lambda: doubling(lambda x: 2.1 * x), "off by 5.00e-02"),
        (lambda: doubling(lambda x: x * float("nan")), "NaN"),
        (lambda: doubling(lambda x: x[:2]), "output is (2, 4), expected (3, 4)"),
    ],
)
def test_a_wrong_implementation_is_a_reason_and_the_others_go_on(implementation, why):
    got = row(bad=implementation, good=doubling)
    assert list(got["timings"]) == ["dense", "good"]
    assert why in got["failed"]["bad"]


def test_an_implementation_that_is_wrong_in_its_first_call_is_a_reason():
    calls = iter(range(100))
    got = row(bad=lambda: doubling(lambda x: 2 * x if next(calls) else x))
    assert "off by" in got["failed"]["bad"]


def test_an_implementation_that_goes_wrong_while_timed_is_a_reason():
    calls = iter(range(100))
    got = row(bad=lambda: doubling(lambda x: 2 * x if next(calls) < 2 else x), good=doubling)
    assert list(got["timings"]) == ["dense", "good"]
    assert "off by" in got["failed"]["bad"]


def test_without_dense_there_are_no_ratios_and_no_times():
    got = row(dense=fails, good=doubling)
    assert "timings" not in got
    assert list(got["failed"]) == ["dense"]


def test_an_implementation_with_other_weights_has_its_own_expected_output():
    got = row(own=lambda: doubling(lambda x: 3 * x, expected=3 * X))
    assert "own" in got["timings"]


def test_the_tensor_that_is_read_is_checked():
    got = row(pair=lambda: doubling(lambda x: (x, 2 * x), read=lambda pair: pair[1]))
    assert "pair" in got["timings"]


def test_notes_are_kept():
    assert row(noted=lambda: doubling(note={"meta": 7}))["timings"]["noted"]["meta"] == 7


def test_copies_overflow_the_cache():
    # three times 960 bytes, by 96 per call
    assert row(l2_bytes=960)["timings"]["dense"]["copies"] == 30


def test_each_copy_has_operands_of_its_own():
    addresses = set()
    row(l2_bytes=96, other=lambda: doubling(lambda x: addresses.add(x.data_ptr()) or 2 * x))
    assert len(addresses) == 3


def test_memory_is_poisoned_before_the_first_call(monkeypatch):
    events, full = [], torch.full

    def recorded(size, value, **kwargs):
        events.append("poison" if (size, value) == ((48,), 255) else "other")
        return full(size, value, **kwargs)

    monkeypatch.setattr(torch, "full", recorded)
    row(other=lambda: doubling(lambda x: events.append("call") or 2 * x))
    assert events[events.index("call") - 1] == "poison"


def test_launches_without_a_graph_are_marked(monkeypatch):
    assert row()["timings"]["dense"]["launched"] is False
    monkeypatch.setattr("benchmarks.suite.measure._rotation", lambda calls, bench: Launched(calls))
    assert row()["timings"]["dense"]["launched"] is True


def test_a_spare_operand_is_no_work():
    spare = Implementation(lambda x, dense: 2 * x, {"x": X, "dense": X}, macs=10)
    assert spare.work(3, 48) == doubling().work(3, 48)


def test_a_reason_is_one_short_line():
    text = reason(ValueError("a\nb" * 1000))
    assert len(text) == MAX_REASON
    assert "\n" not in text


class TestOnCuda:
    """Helpers for CUDA, with CUDA faked."""

    CUDA = "cuda"

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

    def test_an_error_that_loses_the_gpu_names_its_implementation(self, monkeypatch):
        def lost(*_):
            raise RuntimeError("an illegal memory access was encountered")

        monkeypatch.setattr(torch.cuda, "synchronize", lost)
        with pytest.raises(DeviceLost, match="peer: RuntimeError: first") as caught:
            check_device("peer", RuntimeError("first"), bench(device=self.CUDA))
        assert caught.value.name == "peer"

    def test_calls_that_cannot_be_captured_are_launched_one_by_one(self, synchronized, monkeypatch):
        def cannot(self):
            raise RuntimeError("operation not permitted when stream is capturing")

        from benchmarks.suite import measure as module

        monkeypatch.setattr(Rotation, "replay", cannot)
        rotation = module._rotation([lambda: 7], bench(device=self.CUDA))
        assert isinstance(rotation, Launched)
        rotation.replay()
        assert rotation.output == 7

    def test_calls_that_synchronise_are_not_captured(self, synchronized, monkeypatch):
        from benchmarks.suite import measure as module

        def synchronises():
            raise RuntimeError("called a synchronizing CUDA operation")

        monkeypatch.setattr(Rotation, "replay", lambda self: pytest.fail("captured"))
        assert isinstance(module._rotation([synchronises], bench(device=self.CUDA)), Launched)
        assert self.modes == ["error", 0]

    def test_calls_that_fail_otherwise_are_not_launched(self, synchronized):
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
