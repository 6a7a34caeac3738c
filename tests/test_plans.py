import json
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

from lada_ops import CompressionPlan, LayerPlan, compress, plan
from lada_ops.plans import METHODS, OBJECTIVES
from tests.tiny_encoders import tiny_bert

RATIOS = [1.5, 2, 2.5, 3.7, 5, 10, 20]
LOW_RANK = {"format": "low_rank", "in_features": 32, "out_features": 48, "rank": 8}
SPARSE = {
    "format": "block_sparse",
    "in_features": 32,
    "out_features": 48,
    "block": [16, 8],
    "density": 0.25,
}


@pytest.fixture(scope="module")
def bert_base():
    """The shapes of BERT-base, without memory."""
    with torch.device("meta"):
        return BertModel(BertConfig())


def planned_bytes(linear, layer):
    """What the layer will store: factors, blocks, indices and bias, each counted by hand."""
    item, bias = linear.weight.element_size(), 0 if linear.bias is None else linear.out_features
    stored = bias * item
    if layer.rank is not None:
        stored += layer.rank * (linear.in_features + linear.out_features) * item
    if layer.block is not None:
        rows, cols = layer.block
        grid = linear.out_features // rows, linear.in_features // cols
        nnz = round(layer.density * grid[0] * grid[1])
        stored += nnz * (rows * cols * item + 4) + (grid[0] + 1) * 4
    return stored


def unit_bytes(linear, layer, rank_multiple=8):
    """The smallest step by which the layer can grow."""
    item = linear.weight.element_size()
    if layer.block is None:
        return rank_multiple * (linear.in_features + linear.out_features) * item
    return layer.block[0] * layer.block[1] * item + 4


def dense_bytes(linear):
    return sum(p.numel() * p.element_size() for p in linear.parameters())


def check_budget(model, made, ratio):
    linears = {name: model.get_submodule(name) for name in made.layers}
    budget = sum(map(dense_bytes, linears.values())) / ratio
    spent = sum(planned_bytes(linears[n], layer) for n, layer in made.layers.items())
    slack = max(unit_bytes(linears[n], layer) for n, layer in made.layers.items())
    assert budget - slack <= spent <= budget


class TestPlan:
    @pytest.mark.parametrize("ratio", RATIOS)
    @pytest.mark.parametrize("method", METHODS)
    def test_budget_is_spent_and_kept(self, bert_base, method, ratio):
        check_budget(bert_base, plan(bert_base, ratio, method), ratio)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("method", METHODS)
    def test_budget_in_any_dtype(self, method, dtype):
        with torch.device("meta"):
            model = BertModel(BertConfig(num_hidden_layers=2)).to(dtype)
        check_budget(model, plan(model, 4, method), 4)

    @pytest.mark.parametrize("method", METHODS)
    def test_budget_without_biases(self, method):
        model = nn.Sequential(*(nn.Linear(256, 256, bias=False, device="meta") for _ in range(3)))
        check_budget(model, plan(model, 3, method, layers=""), 3)

    @pytest.mark.parametrize("block", [(1, 1), (16, 16), (64, 32), (256, 192)], ids=str)
    def test_budget_of_any_block(self, bert_base, block):
        check_budget(bert_base, plan(bert_base, 4, "block_sparse", block=block), 4)

    @pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
    def test_budget_of_any_share(self, bert_base, share):
        made = plan(bert_base, 4, "sparse_low_rank", low_rank_share=share)
        check_budget(bert_base, made, 4)

    def test_share_is_that_of_u_and_v(self, bert_base):
        made = plan(bert_base, 4, "sparse_low_rank", low_rank_share=0.6)
        in_factors = sum(
            (x.rank or 0) * (x.in_features + x.out_features) for x in made.layers.values()
        )
        weights = sum(x.in_features * x.out_features for x in made.layers.values())
        assert in_factors / weights == pytest.approx(0.6 / 4, rel=0.02)

    @pytest.mark.parametrize("multiple", [1, 8, 16, 32])
    def test_ranks_are_multiples(self, bert_base, multiple):
        made = plan(bert_base, 5, rank_multiple=multiple)
        assert {layer.rank % multiple for layer in made.layers.values()} == {0}

    def test_no_layer_is_without_budget(self, bert_base):
        made = plan(bert_base, 20)
        assert min(layer.rank or 0 for layer in made.layers.values()) >= 8

    def test_uneven_layers_share_what_there_is(self):
        """A layer too small for one unit of its own share takes it from the large one."""
        model = nn.Sequential(*(nn.Linear(n, n, bias=False, device="meta") for n in (512, 16)))
        made = plan(model, 4, layers="")
        assert [layer.rank for layer in made.layers.values()] == [56, 8]

    def test_layers_are_those_of_the_encoder(self, bert_base):
        made = plan(bert_base)
        assert len(made.layers) == 72
        assert made.layers["encoder.layer.3.output.dense"].in_features == 3072
        assert made.layers["encoder.layer.3.output.dense"].out_features == 768

    def test_layers_may_be_chosen(self, bert_base):
        assert set(plan(bert_base, layers="pooler").layers) == {"pooler.dense"}

    @pytest.mark.parametrize("method", METHODS)
    def test_compressed_bytes_are_the_planned_ones(self, method):
        model = tiny_bert(hidden_size=64, intermediate_size=128)
        made = plan(model, 3, method, block=(16, 16), rank_multiple=1)
        want = sum(planned_bytes(model.get_submodule(n), x) for n, x in made.layers.items())
        report = compress(model, made, quiet=True)
        assert report.compressed.stored_bytes == want
        assert report.ratio >= 3

    @pytest.mark.parametrize("objective", OBJECTIVES)
    def test_objective_is_passed_on(self, bert_base, objective):
        assert plan(bert_base, objective=objective).objective == objective

    def test_model_is_left_alone(self):
        model = tiny_bert()
        before = model.state_dict()
        plan(model, 2, rank_multiple=1)
        assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"method": "magic"}, "method 'magic'; expected one of"),
            ({"ratio": 1}, "ratio 1; expected above 1"),
            ({"ratio": 0.5}, "ratio 0.5; expected above 1"),
            ({"ratio": -3}, "ratio -3; expected above 1"),
            ({"ratio": float("nan")}, "ratio nan; expected above 1"),
            ({"rank_multiple": 0}, "rank_multiple 0; expected 1 or more"),
            ({"rank_multiple": 4096}, "ratio cannot be reached"),
            ({"low_rank_share": 0}, "low_rank_share 0; expected between 0 and 1"),
            ({"low_rank_share": 1.0}, "low_rank_share 1.0; expected between 0 and 1"),
            ({"objective": "beauty"}, "objective 'beauty'; expected one of"),
            ({"method": "block_sparse", "block": (100, 16)}, r"query: block \(100, 16\) does not"),
            ({"method": "sparse_low_rank", "block": (0, 16)}, r"block \(0, 16\)"),
            ({"layers": "nothing"}, "layers='nothing' matches none"),
            ({"ratio": float("inf")}, "ratio cannot be reached"),
            ({"ratio": 10_000}, "ratio cannot be reached"),
            ({"ratio": 500, "method": "block_sparse"}, "ratio cannot be reached"),
            ({"ratio": 300, "method": "sparse_low_rank"}, "ratio cannot be reached"),
        ],
        ids=str,
    )
    def test_refuses(self, bert_base, wrong, message):
        with pytest.raises(ValueError, match=message):
            plan(bert_base, **wrong)

    def test_refuses_a_model_without_linears(self):
        with pytest.raises(ValueError, match="no encoder linear found in ReLU"):
            plan(nn.ReLU())


class TestLayerPlan:
    def test_block_from_json_is_a_tuple(self):
        assert LayerPlan(**SPARSE).block == (16, 8)  # type: ignore[arg-type]

    @pytest.mark.parametrize("given", [LOW_RANK, SPARSE], ids=lambda given: given["format"])
    def test_to_dict_leaves_out_what_is_none(self, given):
        made = LayerPlan(**given).to_dict()
        assert json.loads(json.dumps(made)) == given

    @pytest.mark.parametrize(
        ("given", "change", "message"),
        [
            (LOW_RANK, {"format": "dense"}, "format 'dense'; expected one of"),
            (LOW_RANK, {"rank": None}, "rank None for format 'low_rank'; expected a value"),
            (LOW_RANK, {"rank": 0}, "rank 0"),
            (LOW_RANK, {"rank": -4}, "rank -4"),
            (LOW_RANK, {"rank": 33}, r"rank 33 .*\(48, 32\); expected 1 to 32"),
            (LOW_RANK, {"rank": 2.5}, "rank 2.5; expected"),
            (LOW_RANK, {"rank": "8"}, "rank '8'; expected"),
            (LOW_RANK, {"rank": True}, "rank True; expected"),
            (LOW_RANK, {"in_features": 0}, "in_features 0"),
            (LOW_RANK, {"out_features": "48"}, "out_features '48'"),
            (LOW_RANK, {"block": (16, 8)}, r"block \(16, 8\) for format 'low_rank'; expected None"),
            (LOW_RANK, {"density": 0.5}, "density 0.5 for format 'low_rank'; expected None"),
            (SPARSE, {"rank": 4}, "rank 4 for format 'block_sparse'; expected None"),
            (SPARSE, {"block": None}, "block None for format 'block_sparse'; expected a value"),
            (SPARSE, {"block": [16]}, r"block \(16,\)"),
            (SPARSE, {"block": 16}, "block 16; expected"),
            (SPARSE, {"block": "16"}, "block '16'; expected"),
            (SPARSE, {"block": [16.0, 8.0]}, r"block \[16.0, 8.0\]; expected"),
            (SPARSE, {"block": [16, -8]}, r"block \[16, -8\]; expected"),
            (SPARSE, {"block": [7, 8]}, r"block \(7, 8\) does not divide .*blocks that do: \{16\}"),
            (SPARSE, {"density": -0.1}, "density -0.1; expected 0 to 1"),
            (SPARSE, {"density": 1.1}, "density 1.1; expected 0 to 1"),
            (SPARSE, {"density": float("nan")}, "density nan; expected 0 to 1"),
            (SPARSE, {"density": "0.5"}, "density '0.5'; expected 0 to 1"),
            (SPARSE, {"format": "sparse_low_rank"}, "rank None"),
        ],
        ids=str,
    )
    def test_refuses(self, given, change, message):
        with pytest.raises(ValueError, match=f"LayerPlan: .*{message}"):
            LayerPlan(**(given | change))


class TestCompressionPlan:
    @pytest.mark.parametrize("method", METHODS)
    def test_json_round_trip(self, bert_base, method):
        made = plan(bert_base, 4, method, objective="weights")
        assert CompressionPlan.from_json(made.to_json()) == made

    def test_json_can_be_read(self):
        made = CompressionPlan({"a.b": LayerPlan(**LOW_RANK)}, "weights")  # type: ignore[arg-type]
        assert json.loads(made.to_json()) == {"objective": "weights", "layers": {"a.b": LOW_RANK}}
        assert made.to_json().count("\n") > 5

    def test_plan_can_be_changed_by_hand(self, bert_base):
        made = plan(bert_base)
        name = "encoder.layer.0.output.dense"
        changed = replace(made, layers={**made.layers, name: LayerPlan("low_rank", 3072, 768, 16)})
        assert changed.layers[name].rank == 16
        assert made.layers[name].rank != 16

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            ([], "CompressionPlan: list; expected an object"),
            ({}, r"missing \['layers', 'objective'\], unknown \[\]"),
            ({"layers": {}}, r"missing \['objective'\]"),
            ({"layers": {}, "objective": "auto", "colour": 1}, r"unknown \['colour'\]"),
            ({"layers": {}, "objective": "beauty"}, "objective 'beauty'; expected one of"),
            ({"layers": [], "objective": "auto"}, "layers is list; expected an object"),
            ({"layers": {"a": 3}, "objective": "auto"}, "layer 'a': int; expected an object"),
            ({"layers": {"a": {}}, "objective": "auto"}, r"layer 'a': missing \['format', 'in_"),
            (
                {"layers": {"a": LOW_RANK | {"ranks": 3}}, "objective": "auto"},
                r"layer 'a': missing \[\], unknown \['ranks'\]",
            ),
            (
                {"layers": {"a": LOW_RANK | {"rank": 99}}, "objective": "auto"},
                "layer 'a': LayerPlan: rank 99",
            ),
        ],
        ids=str,
    )
    def test_refuses_other_data(self, data, message):
        with pytest.raises(ValueError, match=message):
            CompressionPlan.from_json(json.dumps(data))

    @pytest.mark.parametrize("text", ["", "plan", '{"layers": '])
    def test_refuses_what_is_no_json(self, text):
        with pytest.raises(ValueError, match="line 1 column"):
            CompressionPlan.from_json(text)
