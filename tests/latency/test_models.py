import copy

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel
from transformers.modeling_outputs import QuestionAnsweringModelOutput, TokenClassifierOutput

import lada_ops
from lada_ops.engine.optimize import fast_dtypes
from lada_ops.latency import TOLERANCES, WrongOutput, compare_models
from lada_ops.latency.models import _tolerance, read_output
from tests.engine.models import fused

native_only = pytest.mark.skipif(not fast_dtypes(), reason="no native library was built")
CONFIG = BertConfig(
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=2,
    num_attention_heads=2,
    vocab_size=100,
)


@pytest.fixture
def dense():
    torch.manual_seed(0)
    return BertModel(CONFIG).eval()


@pytest.fixture
def compressed(dense):
    models = {}
    for method in ("low_rank", "block_sparse", "sparse_low_rank"):
        models[method] = copy.deepcopy(dense)
        plan = lada_ops.plan(dense, ratio=2.5, method=method)
        lada_ops.compress(models[method], plan=plan, quiet=True)
    return models


@pytest.fixture
def batches():
    def batch(rows, length):
        return {
            "input_ids": torch.randint(100, (rows, length)),
            "attention_mask": torch.ones(rows, length, dtype=torch.long),
        }

    return {"1x8": batch(1, 8), "3x5": batch(3, 5)}


def test_every_batch_compares_every_model_with_the_dense_one(dense, compressed, batches):
    found = compare_models(dense, compressed, batches, rounds=1, quiet=True)
    assert list(found) == ["1x8", "3x5"]
    for label, comparison in found.items():
        assert (comparison.label, comparison.baseline) == (label, "dense")
        assert [t.name for t in comparison.timings] == ["dense", *compressed]


def test_a_compressed_model_is_held_to_itself_and_not_to_the_dense_one(dense, compressed, batches):
    found = compare_models(dense, compressed, batches, rounds=1, quiet=True)["3x5"]
    inputs = batches["3x5"]
    loss = (dense(**inputs)[0] - compressed["low_rank"](**inputs)[0]).norm()
    assert loss > 0.01 * dense(**inputs)[0].norm()
    assert found["low_rank"].error < 1e-5


def test_models_are_left_as_they_were(dense, compressed, batches):
    before = {name: str(model) for name, model in compressed.items()}
    compare_models(dense, compressed, batches, rounds=1, quiet=True)
    assert {name: str(model) for name, model in compressed.items()} == before


def test_a_fused_model_is_held_to_its_dense_linears(dense, compressed, batches, monkeypatch):
    model = fused(compressed["low_rank"])
    monkeypatch.delattr(lada_ops.LowRankLinear, "forward")  # neither side may run it
    found = compare_models(dense, {"low_rank": model}, batches, rounds=1, quiet=True)["3x5"]
    assert found["low_rank"].error < 1e-5


def test_half_precision_is_held_to_fp32(dense, compressed, batches):
    half = {"low_rank": compressed["low_rank"].bfloat16()}
    found = compare_models(dense, half, batches, rounds=1, quiet=True)["3x5"]
    assert (found["dense"].dtype, found["low_rank"].dtype) == ("float32", "bfloat16")
    assert found["low_rank"].error > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_optimized_model_is_held_to_what_it_was(dense, compressed, batches, dtype):
    optimized = lada_ops.optimize(copy.deepcopy(compressed["low_rank"]), dtype)
    found = compare_models(
        *(dense, {"fast": optimized}, batches),
        **{"references": {"fast": compressed["low_rank"]}, "rounds": 1, "quiet": True},
    )
    assert [t.name for t in found["3x5"].timings] == ["dense", "fast"]


def test_an_optimized_model_that_says_something_else_is_refused(dense, compressed, batches):
    optimized = lada_ops.optimize(copy.deepcopy(compressed["low_rank"]))
    other = {"fast": compressed["block_sparse"]}
    with pytest.raises(WrongOutput, match="'fast'"):
        compare_models(dense, {"fast": optimized}, batches, references=other, rounds=1, quiet=True)


@native_only
def test_an_optimized_model_needs_its_reference(dense, compressed, batches):
    optimized = lada_ops.optimize(compressed["low_rank"])
    with pytest.raises(ValueError, match="'fast' was optimized; expected .* references"):
        compare_models(dense, {"fast": optimized}, batches, rounds=1, quiet=True)


def test_a_module_that_computes_something_else_is_refused(dense, compressed, batches):
    layer = compressed["low_rank"].encoder.layer[1].output.dense
    layer.register_forward_hook(lambda module, args, output: output.flip(-1))
    with pytest.raises(WrongOutput, match="'low_rank'"):
        compare_models(dense, compressed, batches, quiet=True)


class Erring(nn.Module):
    """Identity, except for random values at one position."""

    def __init__(self, position=None):
        super().__init__()
        self.position = position

    def forward(self, x, attention_mask):
        y = x.clone()
        if self.position is not None:
            y[:, self.position] = torch.rand_like(y[:, self.position])
        return (y,)


@pytest.mark.parametrize(("wrong_at", "refused"), [(3, True), (4, False)])
def test_only_unmasked_positions_count(wrong_at, refused):
    batch = {"x": torch.rand(2, 5, 4), "attention_mask": torch.tensor([[1, 1, 1, 1, 0]] * 2)}
    arguments = (Erring().eval(), {"other": Erring(wrong_at).eval()}, {"2x5": batch})
    if refused:
        with pytest.raises(WrongOutput, match="'other'"):
            compare_models(*arguments, quiet=True)
    else:
        compare_models(*arguments, rounds=1, quiet=True)


class Noisy(nn.Module):
    """Identity with a little random noise."""

    def forward(self, x):
        return (x + 1e-4 * torch.rand_like(x),)


def test_logits_near_zero_are_held_to_the_size_of_those_of_other_batches():
    noisy, near_zero = Noisy().eval(), {"near zero": {"x": torch.full((1, 2), 1e-6)}}
    with pytest.raises(WrongOutput):
        compare_models(noisy, {"same": noisy}, near_zero, quiet=True)
    batches = near_zero | {"far": {"x": torch.tensor([[3.0, -4.0]])}}
    compare_models(noisy, {"same": noisy}, batches, rounds=1, quiet=True)


HIDDEN, OTHER = torch.rand(2, 3, 4), torch.rand(2, 7)


@pytest.mark.parametrize(
    "output",
    [
        HIDDEN,
        (HIDDEN, OTHER),
        [None, HIDDEN],
        {"loss": OTHER.sum(), "logits": HIDDEN},
        {"pooled": OTHER, "last_hidden_state": HIDDEN},
        TokenClassifierOutput(loss=OTHER.sum(), logits=HIDDEN),
        QuestionAnsweringModelOutput(start_logits=HIDDEN, end_logits=OTHER),
    ],
)
def test_the_main_tensor_of_an_output_is_found(output):
    assert read_output(output) is HIDDEN


@pytest.mark.parametrize("output", [None, {}, (), "text", {"loss": None}])
def test_an_output_without_tensors_is_a_type_error(output):
    with pytest.raises(TypeError, match="expected a tensor, or a tuple or mapping"):
        read_output(output)


def test_a_mask_does_not_touch_an_output_without_positions():
    assert read_output(OTHER, torch.zeros(2, 3)) is OTHER


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda dense, models, batches: models.update(dense=dense), "named 'dense'"),
        (lambda dense, models, batches: batches.clear(), "batches is empty"),
        (lambda dense, models, batches: dense.train(), "'dense' is in training mode"),
    ],
)
def test_bad_arguments_are_named(dense, batches, change, message):
    models = {}
    change(dense, models, batches)
    with pytest.raises(ValueError, match=message):
        compare_models(dense, models, batches, quiet=True)


@native_only
def test_a_model_in_bfloat16_is_held_to_that_whatever_its_linears_compute_in(dense):
    model = lada_ops.optimize(dense, torch.float32)
    assert _tolerance(model) == TOLERANCES[torch.float32]
    nn.Module.to(model.embeddings, torch.bfloat16)
    assert _tolerance(model) == TOLERANCES[torch.bfloat16]
