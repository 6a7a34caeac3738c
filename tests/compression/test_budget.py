import re
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

from lada_ops import compress, layer_statistics, plan
from lada_ops.architectures.encoders import encoder_linears
from lada_ops.compression.plan import METHODS, OBJECTIVES
from lada_ops.formats.grid import group_of
from tests.tiny_encoders import batch, tiny_bert

RATIOS = [1.5, 2, 2.5, 3.7, 5, 10, 20]
SMALL = {"rank_multiple": 2, "block": (8, 8), "quiet": True}


def planned_bytes(linear, layer):
    """Stored bytes of a planned layer: factors, blocks, indices and bias, counted by hand."""
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
    return group_of((linear.out_features, linear.in_features), layer.block) * (
        layer.block[0] * layer.block[1] * item + 4
    )


def dense_bytes(linear):
    return sum(p.numel() * p.element_size() for p in linear.parameters())


def check_budget(model, made, ratio, rank_multiple=8):
    linears = {name: model.get_submodule(name) for name in made.layers}
    budget = sum(map(dense_bytes, linears.values())) / ratio
    spent = sum(planned_bytes(linears[n], layer) for n, layer in made.layers.items())
    slack = max(unit_bytes(linears[n], layer, rank_multiple) for n, layer in made.layers.items())
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

    @pytest.mark.parametrize(
        "block",
        [pytest.param((1, 1), marks=pytest.mark.exhaustive), (16, 16), (64, 32), (256, 192)],
        ids=str,
    )
    def test_budget_of_any_block(self, bert_base, block):
        check_budget(bert_base, plan(bert_base, 4, "block_sparse", block=block), 4)

    @pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
    def test_budget_of_any_share(self, bert_base, share):
        made = plan(bert_base, 4, "sparse_low_rank", low_rank_share=share)
        check_budget(bert_base, made, 4)

    @pytest.mark.parametrize("method", ["block_sparse", "sparse_low_rank"])
    def test_blocks_come_in_whole_packs(self, bert_base, method):
        for layer in plan(bert_base, 4, method).layers.values():
            blocks = (layer.density or 0) * (layer.out_features // 128) * (layer.in_features // 16)
            assert blocks / 4 == pytest.approx(round(blocks / 4))

    def test_layers_of_some_rank_may_be_without_blocks(self):
        """The budget is below a pack of 128 x 64 for each layer."""
        model = nn.Sequential(*(nn.Linear(384, 384, bias=False, device="meta") for _ in range(3)))
        made = plan(model, 10, "sparse_low_rank", rank_multiple=1, layers="")
        assert sorted(layer.density or 0 for layer in made.layers.values()) == [0, 0, 4 / 72]

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
        report = compress(model, plan=made, quiet=True)
        assert report.compressed.stored_bytes == want
        assert report.ratio >= 3

    @pytest.mark.parametrize("objective", OBJECTIVES)
    def test_objective_is_passed_on(self, bert_base, objective):
        assert plan(bert_base, objective=objective).objective == objective

    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("size", ["layers", "model"])
    def test_the_nearest_ratio_is_told_and_can_be_reached(self, bert_base, method, size):
        model = bert_base if size == "model" else tiny_bert()
        small = {} if size == "model" else SMALL
        with pytest.raises(ValueError, match="expected at most") as error:
            plan(model, 1000, method, **small)
        most = float(re.findall(r"at most ([\d.]+),", str(error.value))[0])
        made = plan(model, most, method, **small)
        check_budget(model, made, most, small.get("rank_multiple", 8))
        with pytest.raises(ValueError, match="cannot be reached"):
            plan(model, most + 0.02, method, **small)

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
            ({"rank_multiple": 4096}, "too small for a rank"),
            ({"low_rank_share": 0}, "low_rank_share 0; expected between 0 and 1"),
            ({"low_rank_share": 1.0}, "low_rank_share 1.0; expected between 0 and 1"),
            ({"objective": "beauty"}, "objective 'beauty'; expected one of"),
            ({"method": "block_sparse", "block": (100, 16)}, r"query: block \(100, 16\) does not"),
            ({"method": "sparse_low_rank", "block": (0, 16)}, r"block \(0, 16\)"),
            ({"layers": "nothing"}, "layers='nothing' matches none"),
            ({"layers": 5}, "layers=5 is no regular expression"),
            ({"ratio": "5"}, "ratio '5'; expected above 1"),
            ({"rank_multiple": 2.5}, "rank_multiple 2.5; expected 1 or more"),
            ({"low_rank_share": "1"}, "low_rank_share '1'; expected between 0 and 1"),
            ({"method": "block_sparse", "block": 16}, "block 16; expected two whole numbers"),
            ({"method": "block_sparse", "block": (16.0, 8)}, "expected two whole numbers"),
            ({"selection": "luck"}, "plan: selection 'luck'; expected one of"),
            ({"ratio": float("inf")}, "ratio inf cannot be reached"),
            ({"ratio": 10_000}, "ratio 10000 cannot be reached"),
            ({"ratio": 500, "method": "block_sparse"}, "ratio 500 cannot be reached"),
            ({"ratio": 300, "method": "sparse_low_rank"}, "ratio 300 cannot be reached"),
        ],
        ids=str,
    )
    def test_refuses(self, bert_base, wrong, message):
        with pytest.raises(ValueError, match=message):
            plan(bert_base, **wrong)

    def test_refuses_a_model_without_linears(self):
        with pytest.raises(ValueError, match="no encoder linear found in ReLU"):
            plan(nn.ReLU())

    @pytest.mark.parametrize("method", METHODS)
    def test_a_layer_whose_bias_takes_its_whole_budget_is_planned(self, method):
        model = nn.Sequential(nn.Linear(4, 8, device="meta"), nn.Linear(64, 64, device="meta"))
        made = plan(model, 5, method, rank_multiple=1, block=(4, 4), layers="")
        check_budget(model, made, 5, 1)

    @pytest.mark.parametrize("wrong", [{"rank_multiple": 4096}, {"ratio": 1000}], ids=str)
    def test_advice_tells_whose_argument_rank_multiple_is(self, bert_base, wrong):
        """The command line has no such option."""
        with pytest.raises(ValueError, match="rank_multiple of lada_ops.plan"):
            plan(bert_base, **wrong)


class TestPlanWithCalibration:
    BATCHES = [batch(4, 12), batch(3, 9, seed=1)]

    @pytest.mark.parametrize("ratio", [2.5, 4])
    @pytest.mark.parametrize("method", METHODS)
    def test_budget_is_spent_and_kept(self, method, ratio):
        model = tiny_bert()
        made = plan(model, ratio, method, calibration=self.BATCHES, **SMALL)
        check_budget(model, made, ratio, 2)

    def test_output_error_is_lower_than_shared_evenly(self):
        even, shared = (
            plan(tiny_bert(), 3, calibration=calibration, objective="activations", **SMALL)
            for calibration in (None, self.BATCHES)
        )
        assert total_error(even, self.BATCHES) > total_error(shared, self.BATCHES)

    def test_every_layer_keeps_half_of_its_even_share(self):
        even, shared = (
            plan(tiny_bert(), 3, calibration=calibration, **SMALL)
            for calibration in (None, self.BATCHES)
        )
        assert even != shared
        for name, layer in shared.layers.items():
            given, kept = even.layers[name].rank, layer.rank
            assert given is not None
            assert kept is not None
            assert kept >= given // 2 - 2, name

    @pytest.mark.parametrize("method", ["low_rank", "block_sparse"])
    def test_layers_get_more_whose_errors_cost_more(self, method):
        model = tiny_bert()
        seen = layer_statistics(model, self.BATCHES, quiet=True)
        dear = "encoder.layer.1.intermediate.dense"
        made = []
        for factor in (1, 100):
            outputs = factor * seen[dear].outputs
            changed = seen | {dear: replace(seen[dear], outputs=outputs)}
            made.append(plan(model, 3, method, calibration=changed, **SMALL).layers[dear])
        size = "rank" if method == "low_rank" else "density"
        assert getattr(made[1], size) > getattr(made[0], size)

    def test_activations_alone_do_not_look_at_the_outputs(self):
        model = tiny_bert()
        seen = layer_statistics(model, self.BATCHES, quiet=True)
        changed = {n: replace(s, outputs=torch.eye(len(s.outputs))) for n, s in seen.items()}
        first, second = (
            plan(model, 3, calibration=statistics, objective="activations", **SMALL)
            for statistics in (seen, changed)
        )
        assert first == second

    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("objective", OBJECTIVES)
    def test_every_objective_shares_by_calibration(self, objective, method):
        made, even = (
            plan(tiny_bert(), 3, method, calibration=seen, objective=objective, **SMALL)
            for seen in (self.BATCHES, None)
        )
        assert made.layers != even.layers

    def test_useless_calibration_is_refused(self):
        with pytest.raises(ValueError, match="calibration: no batches; expected"):
            plan(tiny_bert(), 2, calibration=[])

    def test_an_unknown_objective_is_refused_before_the_batches_are_run(self):
        def batches():
            raise AssertionError
            yield

        with pytest.raises(ValueError, match="plan: objective 'beauty'; expected one of"):
            plan(tiny_bert(), 2, calibration=batches(), objective="beauty")  # type: ignore[arg-type]

    @pytest.mark.parametrize("selection", ["wanda", "second_order"])
    @pytest.mark.parametrize("method", METHODS)
    def test_weights_of_any_scale_are_compressed(self, method, selection):
        model = tiny_bert()
        with torch.no_grad():
            for linear in encoder_linears(model).values():
                linear.weight *= 1e-30
        made = plan(model, 3, method, calibration=self.BATCHES, selection=selection, **SMALL)
        report = compress(model, plan=made, calibration=self.BATCHES, sequential=False, quiet=True)
        assert all(0 < (layer.activation_error or 0) < 1 for layer in report.layers.values())

    @pytest.mark.parametrize("method", METHODS)
    def test_nan_in_a_weight_is_named(self, method):
        model = tiny_bert()
        model.encoder.layer[1].output.dense.weight.data[3, 5] = torch.nan
        with pytest.raises(ValueError, match=r"layer\.1\.output\.dense: the weight holds NaN"):
            plan(model, 3, method, calibration=self.BATCHES, **SMALL)


def total_error(made, batches):
    """The summed squares of the relative output errors."""
    report = compress(tiny_bert(), plan=made, calibration=batches, sequential=False, quiet=True)
    return sum((layer.activation_error or 0) ** 2 for layer in report.layers.values())
