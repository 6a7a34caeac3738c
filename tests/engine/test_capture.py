"""Sizes and arguments of recorded graphs, without a GPU; the graphs' own tests are in gpu/."""

import pytest
import torch

from lada_ops import capture_graphs
from lada_ops.engine.capture import record_graphs
from lada_ops.engine.gpu.graphs import Graphs, Size
from tests.engine.gpu.test_graphs import FakeRecorder
from tests.engine.models import compress, compressed, fused
from tests.tiny_encoders import tiny_bert


@pytest.fixture
def bert():
    return compress(tiny_bert())


def fake_graphs():
    return Graphs(FakeRecorder())


def spied(model, monkeypatch):
    """Forward of the model, and the list of the arguments of its runs."""
    forward, runs = model.forward, []
    run = forward.run

    def spy(ids, mask, **others):
        runs.append({"ids": ids, "mask": mask, **others})
        return run(ids, mask, **others)

    monkeypatch.setattr(forward, "run", spy)
    return forward, runs


def test_sizes_and_bytes_are_returned(bert):
    sizes = record_graphs(fused(bert).forward, [(1, 16), (4, 9)], fake_graphs)
    hidden = 32  # fp32: the last hidden state, and the pooler's output
    assert sizes == {"1x16": 4 * (16 + 1) * hidden, "4x9": 4 * (4 * 9 + 4) * hidden}


def test_the_next_call_adds_sizes_to_the_same_graphs(bert):
    forward = fused(bert).forward
    record_graphs(forward, [(1, 16)], fake_graphs)
    graphs = forward.graphs
    sizes = record_graphs(forward, [(1, 16), (2, 8)], lambda: pytest.fail("made anew"))
    assert list(sizes) == ["1x16", "2x8"]
    assert forward.graphs is graphs


@pytest.mark.parametrize(("pad_id", "recorded"), [(7, 7), (0, 0), (None, 0)])
def test_graphs_are_recorded_on_the_padding_token(bert, pad_id, recorded, monkeypatch):
    forward, runs = spied(fused(bert), monkeypatch)
    bert.config.pad_token_id = pad_id
    record_graphs(forward, [(2, 3)], fake_graphs)
    assert torch.equal(runs[0]["ids"], torch.full((2, 3), recorded))


def test_a_capture_never_syncs(bert, monkeypatch):
    forward, runs = spied(fused(bert), monkeypatch)
    record_graphs(forward, [(2, 3)], fake_graphs)
    assert [run["may_sync"] for run in runs] == [False]


@pytest.mark.parametrize(("name", "typed"), [("bert", True), ("distilbert", False)])
def test_token_types_go_to_models_that_have_them(name, typed, monkeypatch):
    forward, runs = spied(fused(compressed(name)).base_model, monkeypatch)
    record_graphs(forward, [(2, 3)], fake_graphs)
    assert ("token_type_ids" in runs[0]) == typed


@pytest.mark.parametrize(
    ("name", "longest"), [("roberta", 39), ("mpnet", 38), ("distilbert", 40), ("modernbert", 40)]
)
def test_lengths_up_to_the_positions(name, longest):
    forward = fused(compressed(name)).base_model.forward
    assert list(record_graphs(forward, [(1, longest)], fake_graphs)) == [f"1x{longest}"]


class TestRefuses:
    def test_a_model_that_is_not_optimized(self, bert):
        with pytest.raises(
            ValueError, match="BertModel holds no model of BertMod.*lada_ops.optimize made"
        ):
            capture_graphs(bert, [(1, 8)])

    def test_an_unsupported_architecture(self):
        with pytest.raises(ValueError, match="or torch.compile of others"):
            capture_graphs(compressed("deberta"), [(1, 8)])

    def test_the_cpu(self, bert):
        with pytest.raises(ValueError, match="the model is on cpu; expected a GPU"):
            capture_graphs(fused(bert), [(1, 8)])

    @pytest.mark.parametrize("size", [(0, 8), (1, 0), (1, 41)])
    def test_sizes_out_of_range_before_any_is_recorded(self, bert, size):
        model = fused(bert)
        with pytest.raises(ValueError, match=rf"size {Size(*size)}; expected .* of 1 to 40"):
            record_graphs(model.forward, [(1, 8), size], lambda: pytest.fail("recorded"))
        assert model.forward.graphs is None

    @pytest.mark.parametrize(
        ("name", "longest"),
        [("roberta", 39), ("mpnet", 38), ("distilbert", 40), ("modernbert", 40)],
    )
    def test_lengths_beyond_the_positions(self, name, longest):
        model = fused(compressed(name)).base_model
        with pytest.raises(ValueError, match=f"of 1 to {longest}"):
            record_graphs(model.forward, [(1, longest + 1)], lambda: pytest.fail("recorded"))
