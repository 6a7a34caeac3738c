import itertools

import pytest
import torch

from lada_ops.latency import Candidate, CpuClock, CudaClock, compare
from lada_ops.latency.clock import clock_for
from tests.latency.fakes import RIGHT


def test_cpu_clock_gives_seconds_per_call_and_the_last_output(monkeypatch):
    now = iter([10.0, 13.0])
    monkeypatch.setattr("lada_ops.latency.clock.time.perf_counter", lambda: next(now))
    outputs = iter("abc")
    assert CpuClock().sample(itertools.repeat(lambda: next(outputs)), 3) == (1.0, "c")


def test_cuda_clock_starts_from_an_idle_device_with_a_cold_cache(monkeypatch):
    log = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self, stream):
            log.append("record")

        def elapsed_time(self, other):
            return 2.0  # milliseconds

    class Flush:
        def zero_(self):
            log.append("flush")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: log.append("synchronize"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr(torch, "empty", lambda *size, **kwargs: Flush())
    clock = CudaClock(torch.device("cuda"))
    run = itertools.repeat(lambda: log.append("run"))
    seconds, _ = clock.sample(run, 2)
    assert seconds == 2e-3
    assert log == 2 * ["flush", "synchronize", "record", "run", "record", "synchronize"]


def test_the_clock_follows_the_device():
    assert isinstance(clock_for(torch.device("cpu")), CpuClock)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_outputs_are_timed_by_cuda_events():
    right = RIGHT.cuda()
    found = compare([Candidate("a", right.clone, RIGHT)], baseline="a", rounds=2, quiet=True)
    assert found["a"].calls_per_sample == 1
    assert found["a"].seconds.median > 0
    assert found.settings["clock"] == CudaClock.name
