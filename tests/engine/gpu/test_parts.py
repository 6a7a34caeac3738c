import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lada_kernels import tuning
from lada_ops import LowRankLinear
from lada_ops.engine.gpu import parts as parts_module
from lada_ops.engine.gpu.merged_linear import merge
from lada_ops.engine.gpu.parts import (
    FrozenLayerNorm,
    LowRankFeedForward,
    Projections,
    feed_forward_of,
    keep_dense,
    tuned_calls,
)
from tests.engine.gpu.linears import BLOCK, FORMATS, make, norm_of, x_of


@pytest.fixture(autouse=True)
def _seeded_without_gradients():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


@pytest.mark.parametrize("biases", [(True,) * 3, (False,) * 3, (True, False, True)], ids=str)
@pytest.mark.parametrize("format", FORMATS)
def test_projections_equal_those_of_the_linears(format, biases):
    linears = [make(format, bias=bias) for bias in biases]
    x = x_of(2, 3)
    want = [linear(x) for linear in linears]
    torch.testing.assert_close(Projections(linears)(x), want)


@pytest.mark.parametrize("format", FORMATS)
def test_projections_of_several_widths(format):
    linears = [make(format, out) for out in (8, 24, 24)]
    x = x_of(5)
    torch.testing.assert_close(Projections(linears)(x), [linear(x) for linear in linears])


@pytest.mark.parametrize("format", ["low rank", "sparse + low rank"])
def test_projections_of_several_ranks(format):
    linears = [make(format, rank=rank) for rank in (2, 7, 1)]
    x = x_of(5)
    projections = Projections(linears)
    torch.testing.assert_close(projections(x), [linear(x) for linear in linears])
    assert len(projections.merged) == 1


@pytest.mark.parametrize(
    ("formats", "how"),
    [
        (["dense"] * 3, ["dense, 3 in one product"] * 3),
        (["low rank"] * 3, ["low rank, 3 in one product"] * 3),
        (["block sparse"] * 3, ["block sparse, 3 in one product"] * 3),
        (["sparse + low rank"] * 3, ["sparse + low rank, 3 in one product"] * 3),
        (["low rank", "dense", "dense"], ["low rank", *["dense, 2 in one product"] * 2]),
    ],
)
def test_projections_merge_neighbours_of_one_format(formats, how):
    linears = [make(format) for format in formats]
    x = x_of(5)
    want = [linear(x) for linear in linears]
    projections = Projections(linears)
    assert projections.how == how
    torch.testing.assert_close(projections(x), want)


def test_blocks_of_several_shapes_are_not_merged():
    linears = [make("block sparse", block=block) for block in (BLOCK, (4, 4))]
    x = x_of(5)
    want = [linear(x) for linear in linears]
    projections = Projections(linears)
    assert projections.how == ["block sparse"] * 2
    torch.testing.assert_close(projections(x), want)


class TestFeedForward:
    def test_two_low_rank_linears_are_one_op(self):
        intermediate, output, norm = (
            make("low rank"),
            LowRankLinear(24, 16, 4, dtype=torch.float64),
            norm_of(16),
        )
        x = x_of(2, 3)
        feed_forward = feed_forward_of(intermediate, output, "gelu", norm)
        assert type(feed_forward) is LowRankFeedForward
        torch.testing.assert_close(feed_forward(x, x), norm(output(F.gelu(intermediate(x))) + x))

    def test_linears_of_high_rank_are_two_calls(self):
        intermediate = LowRankLinear(16, 300, 4, dtype=torch.float64)
        output = LowRankLinear(300, 160, 129, dtype=torch.float64)
        assert (
            type(feed_forward_of(intermediate, output, "gelu", norm_of(160)))
            is not LowRankFeedForward
        )

    @pytest.mark.parametrize("format", FORMATS)
    def test_other_formats_are_two_calls(self, format):
        intermediate, output, norm = (
            make(format),
            nn.Linear(24, 16, dtype=torch.float64),
            norm_of(16),
        )
        x = x_of(2, 3)
        feed_forward = feed_forward_of(intermediate, output, "relu", norm)
        torch.testing.assert_close(feed_forward(x, x), norm(output(F.relu(intermediate(x))) + x))
        assert feed_forward.how == [format, "dense"]

    @pytest.mark.parametrize("norm", [None, norm_of(16)], ids=["no norm", "norm"])
    @pytest.mark.parametrize("format", FORMATS)
    def test_gated(self, format, norm):
        intermediate, output = make(format, 48), nn.Linear(24, 16, dtype=torch.float64)
        x, residual = x_of(2, 3), x_of(2, 3)
        first, second = intermediate(x).chunk(2, -1)
        want = output(F.silu(first) * second) + residual
        feed_forward = feed_forward_of(intermediate, output, "silu", norm, gated=True)
        got = feed_forward(x, residual)
        torch.testing.assert_close(got, want if norm is None else norm(want))
        assert feed_forward.how == [format, "dense"]


@pytest.mark.parametrize("bias", [True, False])
def test_a_frozen_norm_is_in_no_state_dict(bias):
    norm = nn.LayerNorm(16, eps=0.1, bias=bias, dtype=torch.float64)
    nn.init.normal_(norm.weight)
    frozen, x = FrozenLayerNorm(norm), x_of(2, 3)
    torch.testing.assert_close(frozen(x), norm(x), rtol=0, atol=0)
    assert frozen.state_dict() == {}
    assert [*frozen.parameters()] == []


def parts():
    """Parts that call every op: a feed-forward in one op, and merged linears of every format."""
    intermediate, output = make("low rank", 32), LowRankLinear(32, 16, 4, dtype=torch.float64)
    return nn.ModuleList(
        [
            feed_forward_of(intermediate, output, "gelu", norm_of(16)),
            Projections([make("low rank") for _ in range(3)]),
            merge([make("block sparse")], "gelu"),
            merge([make("sparse + low rank")], "none", norm_of(24)),
            Projections([make("sparse + low rank") for _ in range(3)]),
            merge([make("dense")]),
        ]
    )


def test_calls_as_tuned_tables_know_them():
    assert [part[:4] for part in tuned_calls(parts())] == [
        ("r32-32-r32", 16, 16, "norm"),
        ("r32", 16, 32, "fused"),
        ("r32", 32, 16, "norm"),
        ("r32x3", 16, 72, "plain"),
        ("8x4-d50", 16, 24, "fused"),
        ("r32+8x4-d50", 16, 24, "norm"),
        ("r32x3+8x4-d50", 16, 72, "plain"),
    ]


class TestKeepDense:
    @pytest.fixture
    def tables(self, monkeypatch):
        """List of the look-ups in tuned tables, with the weights that are faster dense."""

        class Tables(list):
            faster_dense = set()

        tables = Tables()

        def dense_is_ever_fastest(stem, weight, dtype, k, n, device_index):
            tables.append((stem, weight, dtype, k, n, device_index))
            return weight in tables.faster_dense

        monkeypatch.setattr(parts_module, "use_user_tables", lambda: None)
        monkeypatch.setattr(tuning, "dense_is_ever_fastest", dense_is_ever_fastest)
        return tables

    def test_looks_each_call_up_once(self, tables):
        keep_dense(parts())
        assert len(tables) == 7
        assert tables[0] == ("low_rank_ffn", "r32-32-r32", torch.float64, 16, 16, -1)
        assert tables[3] == ("low_rank_linear", "r32x3", torch.float64, 16, 72, -1)

    def test_keeps_nothing_where_dense_is_never_faster(self, tables):
        module = parts()
        keep_dense(module)
        assert {p.linears[0].dense for p in tuned_calls(module)} == {None}

    @pytest.mark.parametrize("at", range(7))
    def test_keeps_the_dense_weight_where_it_is_faster(self, tables, at):
        module = parts()
        call = tuned_calls(module)[at]
        tables.faster_dense = {call.weight}
        keep_dense(module)
        for linear in call.linears:
            assert linear.dense is not None
            x = torch.randn(5, linear.in_features, dtype=torch.float64)
            got = F.linear(x, linear.dense, linear.bias)
            torch.testing.assert_close(got, linear.multiply(x))

    def test_how_names_the_dense_weight(self, tables):
        module = parts()
        tables.faster_dense = {"r32x3"}
        keep_dense(module)
        assert module[1].how == ["low rank or dense, as tuned tables say, 3 in one product"] * 3

    def test_the_op_is_given_the_kept_weights(self, tables, monkeypatch):
        module = parts()
        tables.faster_dense = {"r32-32-r32"}
        keep_dense(module)
        given = {}
        monkeypatch.setattr(parts_module, "low_rank_ffn", lambda *_, **kwargs: given.update(kwargs))
        module[0](x_of(5), x_of(5))
        intermediate, output = tuned_calls(module)[0].linears
        assert given["dense"] == (intermediate.dense, output.dense)
