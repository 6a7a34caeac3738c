import itertools
import weakref

import pytest
import torch

from lada_ops.latency import Candidate, GraphClock, Rotation, compare, copies_for
from lada_ops.latency.graphs import MAX_COPIES
from tests.latency.fakes import RIGHT, FakeClock


@pytest.fixture
def cuda(monkeypatch):
    """Fake CUDA that logs its calls; capturing makes the calls, a replay is only logged."""
    log = []

    class Graph:
        def replay(self):
            log.append("replay")

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self, stream):
            log.append("record")

        def elapsed_time(self, other):
            return 6.0  # milliseconds

    class Capture:
        def __init__(self, graph):
            pass

        def __enter__(self):
            log.append("capture")

        def __exit__(self, *exc):
            log.append("captured")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "graph", Capture)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: log.append("synchronize"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: "current")
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: log.append(f"on {stream}"))
    return log


def calls(count, log):
    return [lambda i=i: log.append(i) or f"output {i}" for i in range(count)]


def clock():
    return GraphClock(torch.device("cuda"))


@pytest.mark.parametrize(
    ("per_call", "l2", "copies"),
    [(10, 100, 30), (11, 100, 28), (1000, 100, 1), (1, 100_000, MAX_COPIES), (0, 1, 3)],
)
def test_there_are_as_many_copies_as_overflow_the_cache(per_call, l2, copies):
    assert copies_for(per_call, l2) == copies


def test_a_rotation_makes_its_calls_in_turn():
    log = []
    rotation = Rotation(calls(3, log))
    assert [rotation() for _ in range(4)] == ["output 0", "output 1", "output 2", "output 0"]


@pytest.mark.parametrize(("copies", "count"), [(1, 24), (5, 25), (24, 24), (100, 100)])
def test_a_graph_holds_every_copy_equally_often(cuda, copies, count):
    rotation = Rotation(calls(copies, cuda))
    rotation.replay()
    captured = cuda[1 : cuda.index("captured")]
    assert captured == list(itertools.islice(itertools.cycle(range(copies)), count))
    assert rotation.output == f"output {copies - 1}"


def test_outputs_rotate_as_the_operands_do(cuda):
    """Otherwise each call would write to lines that the previous call left in the cache."""
    made, alive = [], []

    class Output:
        pass

    def call():
        alive.append(sum(output() is not None for output in made))
        output = Output()
        made.append(weakref.ref(output))
        return output

    Rotation([call] * 3).replay()
    assert max(alive) == 3


def test_a_graph_is_captured_once(cuda):
    rotation = Rotation(calls(2, cuda))
    rotation.replay()
    rotation.replay()
    assert cuda.count("capture") == 1


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_capture_that_fails_leaves_the_stream_as_it_was(error, cuda):
    def fails():
        raise error("not permitted when stream is capturing")

    with pytest.raises(error, match="not permitted"):
        Rotation([fails]).replay()
    assert cuda[-1] == "on current"


def test_the_clock_gives_seconds_per_call_of_the_replays_alone(cuda):
    rotation = Rotation(calls(3, cuda))  # 24 calls a replay
    seconds, output = clock().sample(itertools.repeat(rotation), 25)
    assert seconds == 6e-3 / 48
    assert output == "output 2"
    after = cuda[cuda.index("captured") + 1 :]
    assert after == ["replay", "synchronize", "record", "replay", "replay", "record", "synchronize"]


def test_what_cannot_rotate_is_refused(cuda):
    with pytest.raises(TypeError, match="expected a Rotation"):
        clock().sample(itertools.repeat(lambda: 1), 1)


def test_no_calls_are_no_rotation():
    with pytest.raises(ValueError, match="calls is empty"):
        Rotation([])


def test_a_rotation_is_a_candidates_run_on_any_clock():
    found = compare(
        [Candidate("a", Rotation([RIGHT.clone, RIGHT.clone]), RIGHT)],
        baseline="a",
        rounds=2,
        clock=FakeClock(),
        quiet=True,
    )
    assert found["a"].error == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_replays_are_timed_and_their_output_is_checked():
    copies = [RIGHT.cuda() for _ in range(3)]
    candidate = Candidate("a", Rotation([copy.clone for copy in copies]), RIGHT)
    found = compare([candidate], baseline="a", rounds=3, clock=clock(), quiet=True)
    assert 0 < found["a"].seconds.median < 1e-3
