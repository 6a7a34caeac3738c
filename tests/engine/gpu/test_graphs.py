"""CUDA graphs, with a fake recorder that writes to the same memory at every replay."""

import copy
import logging
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from lada_ops import restore
from lada_ops.engine.capture import record_graphs
from lada_ops.engine.gpu.graphs import Graphs
from tests.engine.inputs import MASKS, assert_equal_where_visible, ids, mask_of
from tests.engine.models import compress, compressed, fused
from tests.tiny_encoders import batch, tiny_bert

TYPES = mask_of("000011111", "001111111", "000000001")
SIZES = [(1, 16), (4, 9), (4, 20)]


class FakeRecorder:
    """Recorder without a GPU, with memory for `room` recordings; `log` lists its actions."""

    device = torch.device("cpu")

    def __init__(self, room=100):
        self.room, self.log = room, []

    def record(self, call):
        if self.room < 1:
            raise torch.OutOfMemoryError("no room")
        self.room -= 1
        outputs = call()

        def replay():
            self.log.append(f"replay {tuple(outputs[0].shape[:2])}")
            for memory, new in zip(outputs, call(), strict=True):
                if memory is not None:
                    memory.copy_(new)

        return outputs, replay, sum(y.nbytes for y in outputs if y is not None)

    def fence(self):
        self.log.append("fence")
        return lambda: self.log.append("wait")

    @property
    def replays(self):
        return [line for line in self.log if line.startswith("replay")]


def recorded(model, sizes=SIZES, room=100, limit=16):
    """Fused model with graphs of these sizes, and their recorder."""
    recorder = FakeRecorder(room)
    record_graphs(fused(model).forward, sizes, lambda: Graphs(recorder, limit))
    return model, recorder


@pytest.fixture
def bert():
    return compress(tiny_bert())


@pytest.fixture
def pair(bert):
    """A model, a copy with graphs, and their recorder."""
    return bert, *recorded(copy.deepcopy(bert))


@torch.no_grad()
@pytest.mark.parametrize("types", [None, TYPES], ids=["", "types"])
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_replays_equal_the_model(pair, mask, types):
    before, after, recorder = pair
    want, got = (model(ids(), mask, types) for model in (before, after))
    assert_equal_where_visible(got[0], want[0], mask)
    if mask is None or mask[:, 0].all():  # the pooler reads the first position
        torch.testing.assert_close(got[1], want[1], rtol=1e-4, atol=1e-5)
    assert recorder.replays == ["replay (4, 9)"]


@torch.no_grad()
@pytest.mark.parametrize("name", ["roberta", "xlm-roberta", "camembert"])
def test_models_like_roberta(name):
    before = compressed(name).base_model
    after, recorder = recorded(copy.deepcopy(before))
    want, got = (model(**batch()) for model in (before, after))
    assert_equal_where_visible(got[0], want[0], batch()["attention_mask"])
    assert recorder.replays


@torch.no_grad()
@pytest.mark.parametrize(
    ("size", "replay"),
    [
        ((4, 9), "replay (4, 9)"),
        ((3, 8), "replay (4, 9)"),
        ((2, 9), "replay (4, 9)"),
        ((1, 9), "replay (1, 16)"),
        ((1, 8), "replay (1, 16)"),
        ((3, 14), "replay (4, 20)"),
        ((1, 7), None),  # less than half
        ((2, 8), None),
        ((5, 9), None),
        ((4, 21), None),
    ],
)
def test_the_smallest_fitting_size_is_replayed(pair, size, replay):
    before, after, recorder = pair
    given = torch.randint(5, 60, size)
    torch.testing.assert_close(after(given)[0], before(given)[0], rtol=1e-4, atol=1e-5)
    assert recorder.replays == ([] if replay is None else [replay])


@torch.no_grad()
@pytest.mark.parametrize(
    "arguments",
    [
        {"position_ids": torch.arange(9)[None] + 3},
        {"input_ids": None, "inputs_embeds": torch.randn(3, 9, 32)},
        {"output_hidden_states": True},
        {"output_attentions": True},
        {"return_dict": False},
        {"token_type_ids": TYPES[:1]},
        {"attention_mask": torch.ones(3, 1, 9, 9).tril().bool()},
    ],
    ids=lambda arguments: next(iter(arguments)),
)
def test_other_calls_run_without_graphs(pair, arguments):
    before, after, recorder = pair
    inputs = {"input_ids": ids()} | arguments
    torch.testing.assert_close(after(**inputs)[0], before(**inputs)[0], rtol=1e-4, atol=1e-5)
    assert recorder.replays == []


@torch.no_grad()
@pytest.mark.parametrize("where", ["embeddings", "pooler.dense", "encoder.layer.1.output.dense"])
def test_hooks_are_called_until_they_are_removed(pair, where):
    _, model, recorder = pair
    met = []
    hook = model.get_submodule(where).register_forward_hook(lambda *_: met.append(where))
    model(ids())
    assert (met, recorder.replays) == ([where], [])
    hook.remove()
    model(ids())
    assert (len(met), len(recorder.replays)) == (1, 1)


@torch.no_grad()
def test_autocast_runs_without_graphs(pair):
    _, model, recorder = pair
    with torch.autocast("cpu", torch.bfloat16):
        model(ids())
    assert recorder.replays == []


def test_training_is_refused(pair):
    with pytest.raises(RuntimeError, match="in training mode"):
        pair[1].train()(ids())


@torch.no_grad()
def test_outputs_are_the_callers_own(pair):
    _, model, _ = pair
    first = model(ids())
    kept = [y.clone() for y in first.to_tuple()]
    model(ids().flip(0))
    torch.testing.assert_close(first.to_tuple(), tuple(kept), rtol=0, atol=0)


@torch.no_grad()
def test_inputs_of_an_earlier_call_are_cleared(pair):
    _, model, _ = pair
    want = model(ids(2, 9))
    model(ids(4, 9).flip(1), None, torch.ones(4, 9, dtype=torch.long))
    torch.testing.assert_close(model(ids(2, 9)).to_tuple(), want.to_tuple(), rtol=0, atol=0)


@torch.no_grad()
def test_a_replay_waits_for_the_copies_of_the_last_outputs(pair):
    _, model, recorder = pair
    for _ in range(2):
        model(ids())
    assert recorder.log == ["replay (4, 9)", "fence", "wait", "replay (4, 9)", "fence"]


@torch.no_grad()
def test_threads_get_their_own_outputs(pair):
    before, model, _ = pair
    inputs = [torch.randint(5, 60, (1 + i % 4, 9)) for i in range(40)]
    want = [before(one)[0] for one in inputs]

    @torch.no_grad()
    def forward(one):
        return model(one)[0]

    with ThreadPoolExecutor(4) as pool:
        for got, expected in zip(pool.map(forward, inputs), want, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", ["roberta", "electra", "distilbert", "mpnet", "modernbert"])
def test_other_architectures(name):
    before = compressed(name).base_model
    model, recorder = recorded(copy.deepcopy(before))
    for mask in (None, MASKS["right"], MASKS["left"]):
        got, want = model(ids(), mask), before(ids(), mask)
        assert got.keys() == want.keys()
        assert_equal_where_visible(got[0], want[0], mask)
    assert len(recorder.replays) == 3


def test_a_recording_of_inference_mode_replays_outside(bert):
    with torch.inference_mode():
        model, recorder = recorded(bert)
    model(ids())
    with torch.inference_mode():
        model(ids())
    assert len(recorder.replays) == 2


class TestLimits:
    def test_the_least_recently_used_is_dropped(self, bert):
        model, _ = recorded(bert, [(1, 8), (2, 8)], limit=2)
        model(ids(1, 8))
        record_graphs(model.forward, [(3, 8)], lambda: pytest.fail("there are some"))
        assert list(model.forward.graphs.sizes) == ["1x8", "3x8"]

    def test_a_recorded_size_is_not_recorded_again(self, bert):
        model, recorder = recorded(bert, [(1, 8)])
        record_graphs(model.forward, [(1, 8)], lambda: pytest.fail("there are some"))
        assert recorder.room == 99

    def test_without_memory_graphs_are_dropped_and_the_model_runs_without(self, bert, caplog):
        with caplog.at_level(logging.WARNING, "lada_ops"):
            model, recorder = recorded(bert, [(1, 8), (2, 8)], room=1)
        assert model.forward.graphs.sizes == {}
        assert "no memory for a graph of 2x8: it runs without one" in caplog.text
        with torch.no_grad():
            model(ids(1, 8))
        assert recorder.replays == []

    def test_bytes_of_each_size(self, bert):
        model, _ = recorded(bert, [(1, 8)])
        assert model.forward.graphs.sizes == {"1x8": 4 * (8 * 32 + 32)}

    def test_a_limit_of_0_is_refused(self):
        with pytest.raises(ValueError, match="limit 0; expected 1 or more"):
            Graphs(FakeRecorder(), 0)


class TestState:
    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
    @torch.no_grad()
    def test_copies_have_no_graphs(self, pair, copied):
        _, model, recorder = pair
        other = copied(model)
        assert other.forward.graphs is None
        torch.testing.assert_close(other(ids())[0], model(ids())[0], rtol=1e-4, atol=1e-5)
        assert len(recorder.replays) == 1

    def test_a_restored_model_has_no_graphs(self, pair):
        before, model, recorder = pair
        restore(model)
        with torch.no_grad():
            torch.testing.assert_close(model(ids())[0], before(ids())[0], rtol=0, atol=0)
        assert recorder.replays == []
