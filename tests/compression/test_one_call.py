"""`compress` in one call: what it takes, and that it equals statistics, plan and fit apart."""

import copy
import json

import pytest
import torch
from torch import nn
from transformers import AutoTokenizer

from lada_ops import compress, layer_statistics, plan
from lada_ops.compression.folder import load_model
from lada_ops.compression.plan import METHODS
from lada_ops.data.texts import token_batches
from tests.compression.test_compress import CALIBRATION, Snapshot, make_plan
from tests.tiny_encoders import tiny_bert
from tests.tiny_model import write_tiny_model

SMALL = {"rank_multiple": 1, "block": (8, 4)}
TEXTS = ["the old dog sleeps under a house .", "a cat runs", "the the cat"]


def assert_same(one, other, reports):
    torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=0, atol=0)
    assert one.config.to_dict() == other.config.to_dict()
    assert reports[0] == reports[1]


@pytest.mark.parametrize("method", METHODS)
def test_equals_statistics_plan_and_sequential_fit(method):
    once, apart = tiny_bert(), tiny_bert()
    report = compress(once, 1.7, method, calibration=CALIBRATION, **SMALL, quiet=True)
    statistics = layer_statistics(apart, CALIBRATION, quiet=True)
    made = plan(apart, 1.7, method, calibration=statistics, **SMALL)
    kwargs = {"calibration": statistics, "sequential": CALIBRATION, "quiet": True}
    assert_same(once, apart, [report, compress(apart, plan=made, **kwargs)])
    assert made != plan(tiny_bert(), 1.7, method, **SMALL)  # statistics tell in the plan


def test_statistics_alone_are_fitted_without_the_sequence():
    once, apart = tiny_bert(), tiny_bert()
    statistics = layer_statistics(once, CALIBRATION, quiet=True)
    report = compress(once, 1.7, calibration=statistics, **SMALL, quiet=True)
    kwargs = {"calibration": CALIBRATION, "sequential": False, "quiet": True}
    assert_same(once, apart, [report, compress(apart, 1.7, **kwargs, **SMALL)])


def test_without_calibration_the_defaults_are_those_of_plan():
    once, apart = (nn.Sequential(nn.Linear(512, 512)) for _ in range(2))
    apart.load_state_dict(once.state_dict())
    report = compress(once, layers="", quiet=True)
    assert report == compress(apart, plan=plan(apart, layers=""), quiet=True)
    torch.testing.assert_close(once.state_dict(), apart.state_dict(), rtol=0, atol=0)


def test_options_reach_the_plan():
    model = tiny_bert()
    options = {"objective": "activations", "selection": "second_order", "layers": "query"}
    made = plan(model, 2, "sparse_low_rank", low_rank_share=0.4, **options, **SMALL)
    report = compress(
        *(model, 2, "sparse_low_rank"),
        calibration=CALIBRATION,
        low_rank_share=0.4,
        **options,
        **SMALL,
        quiet=True,
    )
    config = model.config.quantization_config.plan
    assert (config["objective"], config["selection"]) == ("activations", "second_order")
    assert report.layers.keys() == made.layers.keys()
    ranks = [[each.rank or 0 for each in made.layers.values()]]
    ranks.append([each.plan.rank or 0 for each in report.layers.values()])
    assert sum(ranks[0]) == sum(ranks[1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("model"))


class TestTexts:
    def test_the_tokenizer_is_that_of_the_model_s_folder(self, folder):
        first, second, third = (load_model(str(folder), "cpu") for _ in range(3))
        tokenizer = AutoTokenizer.from_pretrained(folder)
        batches = token_batches(tokenizer, TEXTS)
        report = compress(first, 2, calibration=batches, quiet=True)
        assert_same(first, second, [report, compress(second, 2, calibration=TEXTS, quiet=True)])
        third.config._name_or_path = third.name_or_path = ""
        kwargs = {"calibration": iter(TEXTS), "tokenizer": tokenizer, "quiet": True}
        assert report == compress(third, 2, **kwargs)

    def test_are_cut_to_what_the_model_has_positions_for(self, folder):
        model = load_model(str(folder), "cpu")
        model.config.max_position_embeddings, lengths = 5, []
        model.register_forward_pre_hook(
            lambda _, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
        )
        compress(model, 2, calibration=TEXTS, sequential=False, quiet=True)
        assert lengths == [5]

    def test_of_a_model_without_a_tokenizer_are_refused(self, tmp_path):
        model = tiny_bert()
        refuses(model, "texts without a tokenizer .*from no folder.*expected tokenizer=", TEXTS)
        model.config._name_or_path = model.name_or_path = str(tmp_path)
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
        refuses(model, "token", TEXTS)

    def test_in_the_sequence_alone(self, folder):
        first, second = (load_model(str(folder), "cpu") for _ in range(2))
        statistics = layer_statistics(
            first, token_batches(AutoTokenizer.from_pretrained(folder), TEXTS), quiet=True
        )
        kwargs = {"calibration": statistics, "sequential": TEXTS, "quiet": True}
        report = compress(first, 2, **kwargs)
        assert_same(first, second, [report, compress(second, 2, calibration=TEXTS, quiet=True)])


def refuses(model, message, calibration=None, error=ValueError, **kwargs):
    before = Snapshot(model)
    with pytest.raises(error, match=message):
        compress(model, calibration=calibration, **SMALL | kwargs, quiet=True)
    before.assert_unchanged(model)


@pytest.mark.parametrize(
    "given", [{"ratio": 5.0}, {"method": "low_rank"}, {"block": (128, 16)}, {"layers": "query"}]
)
def test_refuses_a_plan_with_what_it_replaces(given):
    model = tiny_bert()
    before = Snapshot(model)
    with pytest.raises(ValueError, match=f"compress: {next(iter(given))} given with a plan"):
        compress(model, plan=make_plan(model), **given)
    before.assert_unchanged(model)


def test_refuses_what_plan_refuses_before_any_statistics():
    def batches():
        raise AssertionError("were read")
        yield

    refuses(tiny_bert(), "plan: ratio 1000 cannot be reached", batches(), ratio=1000)


@pytest.mark.parametrize(
    ("calibration", "error", "message"),
    [
        (3, TypeError, "calibration is int; expected a list of batches, .*layer_statistics"),
        ("a text", TypeError, "calibration is str; expected a list of batches"),
        ([*CALIBRATION, "text"], TypeError, "batch 2 is str; expected a dict"),
        (iter(()), ValueError, "calibration: no batches; expected at least one"),
        (CALIBRATION[0], ValueError, "expected its inputs .*; a single one|a single one goes in"),
        ({}, ValueError, "as lada_ops.layer_statistics gives them"),
    ],
    ids=["number", "text", "mixed", "empty", "a batch", "no statistics"],
)
def test_refuses_other_calibration(calibration, error, message):
    refuses(tiny_bert(), message, calibration, error, ratio=1.7)


def test_refuses_a_sequence_without_batches():
    model = copy.deepcopy(tiny_bert())
    message = "sequential without batches of calibration"
    refuses(model, message, sequential=True, ratio=1.7)
    refuses(model, message, sequential=CALIBRATION, ratio=1.7)
    statistics = layer_statistics(model, CALIBRATION, quiet=True)
    refuses(model, message, statistics, sequential=True, ratio=1.7)
