import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

import lada_ops
from lada_ops import LowRankLinear
from lada_ops.architectures.encoders import encoder_linears
from lada_ops.compression.pretrained import compression_of
from lada_ops.distill.lada import LADABERT, LadaConfig, LadaPruner, keep_largest, refactorise
from lada_ops.distill.run import distill
from tests.distill.models import arguments, collate, examples, tiny_classifier

TINY = LadaConfig(rank=20, encoder_keep=0.4, embedding_keep=0.5, increments=4)
QUERY = "bert.encoder.layer.0.attention.self.query"


def no_probe() -> float:
    raise AssertionError("nothing is to be tried")


def built(config: LadaConfig, **changes) -> Any:
    model: Any = tiny_classifier(**changes)
    config.build("train", model, [], quiet=True)
    return model


def share(tensor: torch.Tensor) -> float:
    return float((tensor != 0).float().mean())


@pytest.mark.parametrize(("ratio", "millions"), [(2.5, 44), (5.0, 22), (7.5, 15), (10.0, 11)])
def test_the_paper_s_models_have_the_paper_s_parameters(ratio, millions, bert_base):
    assert round(LADABERT[ratio].nonzeros(bert_base) / 1e6) == millions


def test_rank_256_halves_the_encoder_of_bert_base(bert_base):
    config = replace(LADABERT[5.0], encoder_keep=1.0, embedding_keep=None)
    dense = sum(linear.weight.numel() for linear in encoder_linears(bert_base).values())
    assert config.nonzeros(bert_base) == dense / 2


@pytest.mark.parametrize("embedding_keep", [0.2, None])
def test_of_ratio_reaches_it_as_the_paper_counts(embedding_keep, bert_base):
    config = LadaConfig.of_ratio(bert_base, 5, embedding_keep)
    dense = sum(linear.weight.numel() for linear in encoder_linears(bert_base).values())
    if embedding_keep is not None:
        dense += bert_base.embeddings.word_embeddings.weight.numel()
    assert config.rank == 256
    assert config.nonzeros(bert_base) == pytest.approx(dense / 5, rel=1e-6)


def test_a_ratio_out_of_reach_names_the_nearest(bert_base):
    with pytest.raises(ValueError, match=r"ratio 1.5 is out of reach of rank 256 .* 2.30 to below"):
        LadaConfig.of_ratio(bert_base, 1.5)
    with pytest.raises(ValueError, match=r"ratio 30 is out of reach .* to below 23.12"):
        LadaConfig.of_ratio(bert_base, 30)


def test_the_schedule_is_geometric_through_the_first_epoch():
    model = built(TINY)
    pruner = LadaPruner(TINY, model, epochs=2, probe=no_probe)
    query = model.get_submodule(QUERY)
    for step, taken in ((1, 0), (5, 1), (10, 2), (19, 3), (20, 4), (30, 4)):
        pruner.prune(step, 40)
        assert share(query.u) == pytest.approx(0.4 ** (taken / 4), abs=1e-3)
        assert share(query.v) == pytest.approx(0.4 ** (taken / 4), abs=1e-3)
        assert pruner.done == (taken == 4)


def test_embeddings_are_at_their_share_from_the_first_step():
    model = built(TINY)
    LadaPruner(TINY, model, epochs=2, probe=no_probe).prune(1, 40)
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, nn.Embedding)
    assert share(embedding.weight) == pytest.approx(0.5, abs=1e-3)


def test_the_largest_weights_are_kept():
    weight = torch.tensor([[3.0, -1.0, 0.5], [-4.0, 2.0, 0.0]])
    keep_largest(weight, 0.5)
    assert weight.tolist() == [[3.0, 0.0, 0.0], [-4.0, 2.0, 0.0]]
    keep_largest(weight, 1.0)
    assert weight.tolist() == [[3.0, 0.0, 0.0], [-4.0, 2.0, 0.0]]


def test_what_is_zero_may_grow_again():
    model = built(TINY)
    pruner = LadaPruner(TINY, model, epochs=1, probe=no_probe)
    pruner.prune(40, 40)
    query = model.get_submodule(QUERY)
    zero = (query.u == 0).nonzero()[0]
    with torch.no_grad():
        query.u[tuple(zero)] = 100.0
    pruner.prune(40, 40)
    assert query.u[tuple(zero)] == 100
    assert share(query.u) == pytest.approx(0.4, abs=1e-3)


def test_a_layer_may_have_a_share_of_its_own():
    config = replace(TINY, layer_keep={QUERY: 0.9})
    model = built(config)
    LadaPruner(config, model, epochs=1, probe=no_probe).prune(1, 1)
    assert share(model.get_submodule(QUERY).u) == pytest.approx(0.9, abs=1e-3)
    assert share(model.get_submodule(QUERY.replace("query", "key")).u) == pytest.approx(
        0.4, abs=1e-3
    )
    with pytest.raises(ValueError, match=r"layer_keep for \['nonsense'\]"):
        replace(TINY, layer_keep={"nonsense": 0.5}).check(tiny_classifier())


def test_without_a_rank_single_weights_are_pruned():
    config = replace(TINY, rank=None)
    model = built(config)
    LadaPruner(config, model, epochs=1, probe=no_probe).prune(1, 1)
    linears = encoder_linears(model)
    assert len(linears) == 12
    for linear in linears.values():
        assert share(linear.weight) == pytest.approx(0.4, abs=1e-3)


def test_factorised_anew_is_the_best_of_its_rank():
    linear = LowRankLinear(24, 16, 8)
    want = torch.linalg.svd((linear.u @ linear.v).detach())
    refactorise(linear, 3)
    best = want.U[:, :3] * want.S[:3] @ want.Vh[:3]
    torch.testing.assert_close((linear.u @ linear.v).detach(), best)
    assert not linear.u[:, 3:].any()
    assert not linear.v[3:].any()


def test_in_turns_both_take_half_and_end_at_as_many_nonzeros():
    config = replace(TINY, order="alternate", embedding_keep=None)
    model = built(config)
    start = model.get_submodule(QUERY).rank
    assert start == 32  # the largest no larger than dense
    pruner = LadaPruner(config, model, epochs=1, probe=no_probe)
    pruner.prune(1, 1)
    assert pruner.increments == {"prune": 2, "factorise": 2}
    counted = sum(
        model.get_submodule(n).counts().nonzeros for n in encoder_linears(tiny_classifier())
    )
    assert counted == pytest.approx(config.nonzeros(tiny_classifier()), rel=0.03)


@pytest.mark.parametrize(("cheap", "taken"), [("prune", 4), ("factorise", 4)])
def test_greedy_takes_what_leaves_the_smaller_loss(cheap, taken):
    config = replace(TINY, order="greedy", embedding_keep=None)
    model = built(config)
    query = model.get_submodule(QUERY)

    def probe() -> float:
        ranks = int((query.u != 0).any(0).sum())
        zeros = 1 - share(query.u[:, :ranks])
        lost = {"prune": zeros, "factorise": query.rank - ranks}
        return -lost[cheap]

    pruner = LadaPruner(config, model, epochs=1, probe=probe)
    pruner.prune(1, 1)
    assert pruner.increments[cheap] == taken


def test_trying_leaves_no_trace():
    config = replace(TINY, order="greedy")
    model = built(config)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    LadaPruner(config, model, epochs=1, probe=lambda: 0.0)._next()
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_a_state_through_json():
    pruner = LadaPruner(TINY, built(TINY), epochs=2, probe=no_probe)
    pruner.prune(10, 40)
    other = LadaPruner(TINY, built(TINY), epochs=2, probe=no_probe)
    other.load_state(json.loads(json.dumps(pruner.state())))
    assert other.increments == {"prune": 2, "factorise": 0}


@pytest.mark.parametrize("order", ["svd_first", "alternate", "greedy"])
def test_a_whole_run(order, tmp_path):
    teacher, config = tiny_classifier(), replace(TINY, order=order)
    student = distill(teacher, config, arguments(tmp_path), examples(32), collate, quiet=True)
    report = compression_of(student)[1]  # type: ignore[index]
    biases = sum(linear.out_features for linear in encoder_linears(teacher).values())
    embedding = student.get_input_embeddings().get_parameter("weight")
    kept = report.compressed.nonzeros - biases + int(embedding.count_nonzero())
    assert kept == pytest.approx(config.nonzeros(teacher), rel=0.03)
    assert report.compressed.masked_bytes < report.compressed.stored_bytes
    with torch.no_grad():
        lada_ops.optimize(student)(**collate(examples(4)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encoder_keep": 0}, "encoder_keep 0; expected above 0, up to 1"),
        ({"embedding_keep": 1.5}, "embedding_keep 1.5"),
        ({"layer_keep": {"a": -1}}, "a -1; expected above 0"),
        ({"order": "random"}, "order 'random'; expected one of"),
        ({"order": "greedy", "rank": None}, "order 'greedy' without a rank"),
        ({"increments": 0}, "increments 0; expected 1 or more"),
    ],
)
def test_values_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        LadaConfig(**settings)


def test_a_rank_that_saves_nothing_is_refused():
    model = BertModel(BertConfig(hidden_size=96, num_attention_heads=2, num_hidden_layers=1))
    with pytest.raises(ValueError, match=r"rank 256 for encoder.* expected 1 to 48"):
        LadaConfig().check(model)
