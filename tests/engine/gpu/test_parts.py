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
from tests.engine.gpu.linears import BLOCK, KINDS, make, norm_of, x_of


@pytest.fixture(autouse=True)
def _exactly():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


@pytest.mark.parametrize("biases", [(True,) * 3, (False,) * 3, (True, False, True)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_projections_are_those_of_the_linears(kind, biases):
    linears = [make(kind, bias=bias) for bias in biases]
    x = x_of(2, 3)
    want = [linear(x) for linear in linears]
    torch.testing.assert_close(Projections(linears)(x), want)


@pytest.mark.parametrize("kind", KINDS)
def test_projections_of_several_widths(kind):
    linears = [make(kind, out) for out in (8, 24, 24)]
    x = x_of(5)
    torch.testing.assert_close(Projections(linears)(x), [linear(x) for linear in linears])


@pytest.mark.parametrize("kind", ["low rank", "sparse + low rank"])
def test_projections_of_several_ranks(kind):
    linears = [make(kind, rank=rank) for rank in (2, 7, 1)]
    x = x_of(5)
    projections = Projections(linears)
    torch.testing.assert_close(projections(x), [linear(x) for linear in linears])
    assert len(projections.merged) == 1


@pytest.mark.parametrize(
    ("kinds", "how"),
    [
        (["dense"] * 3, ["dense, 3 in one product"] * 3),
        (["low rank"] * 3, ["low rank, 3 in one product"] * 3),
        (["block sparse"] * 3, ["block sparse, 3 in one product"] * 3),
        (["sparse + low rank"] * 3, ["sparse + low rank, 3 in one product"] * 3),
        (["low rank", "dense", "dense"], ["low rank", *["dense, 2 in one product"] * 2]),
    ],
)
def test_as_few_products_as_can_be(kinds, how):
    linears = [make(kind) for kind in kinds]
    x = x_of(5)
    want = [linear(x) for linear in linears]
    projections = Projections(linears)
    assert projections.how == how
    torch.testing.assert_close(projections(x), want)


def test_blocks_of_several_shapes_are_not_joined():
    linears = [make("block sparse", block=block) for block in (BLOCK, (4, 4))]
    x = x_of(5)
    want = [linear(x) for linear in linears]
    projections = Projections(linears)
    assert projections.how == ["block sparse"] * 2
    torch.testing.assert_close(projections(x), want)


class TestFeedForward:
    def test_two_low_rank_linears_are_one_op(self):
        up, down, norm = (
            make("low rank"),
            LowRankLinear(24, 16, 4, dtype=torch.float64),
            norm_of(16),
        )
        x = x_of(2, 3)
        feed_forward = feed_forward_of(up, down, "gelu", norm)
        assert type(feed_forward) is LowRankFeedForward
        torch.testing.assert_close(feed_forward(x, x), norm(down(F.gelu(up(x))) + x))

    def test_of_high_rank_are_two(self):
        up = LowRankLinear(16, 300, 4, dtype=torch.float64)
        down = LowRankLinear(300, 160, 129, dtype=torch.float64)
        assert type(feed_forward_of(up, down, "gelu", norm_of(160))) is not LowRankFeedForward

    @pytest.mark.parametrize("kind", KINDS)
    def test_of_other_kinds(self, kind):
        up, down, norm = make(kind), nn.Linear(24, 16, dtype=torch.float64), norm_of(16)
        x = x_of(2, 3)
        feed_forward = feed_forward_of(up, down, "relu", norm)
        torch.testing.assert_close(feed_forward(x, x), norm(down(F.relu(up(x))) + x))
        assert feed_forward.how == [kind, "dense"]

    @pytest.mark.parametrize("norm", [None, norm_of(16)], ids=["no norm", "norm"])
    @pytest.mark.parametrize("kind", KINDS)
    def test_a_gated_one(self, kind, norm):
        up, down = make(kind, 48), nn.Linear(24, 16, dtype=torch.float64)
        x, residual = x_of(2, 3), x_of(2, 3)
        first, second = up(x).chunk(2, -1)
        want = down(F.silu(first) * second) + residual
        feed_forward = feed_forward_of(up, down, "silu", norm, gated=True)
        got = feed_forward(x, residual)
        torch.testing.assert_close(got, want if norm is None else norm(want))
        assert feed_forward.how == [kind, "dense"]


@pytest.mark.parametrize("bias", [True, False])
def test_a_norm_that_is_held_is_in_no_state_dict(bias):
    norm = nn.LayerNorm(16, eps=0.1, bias=bias, dtype=torch.float64)
    nn.init.normal_(norm.weight)
    held, x = FrozenLayerNorm(norm), x_of(2, 3)
    torch.testing.assert_close(held(x), norm(x), rtol=0, atol=0)
    assert held.state_dict() == {}
    assert [*held.parameters()] == []


def parts():
    """A feed-forward in one op, and products of every kind."""
    up, down = make("low rank", 32), LowRankLinear(32, 16, 4, dtype=torch.float64)
    return nn.ModuleList(
        [
            feed_forward_of(up, down, "gelu", norm_of(16)),
            Projections([make("low rank") for _ in range(3)]),
            merge([make("block sparse")], "gelu"),
            merge([make("sparse + low rank")], "none", norm_of(24)),
            Projections([make("sparse + low rank") for _ in range(3)]),
            merge([make("dense")]),
        ]
    )


def test_what_tables_know_of():
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
    def asked(self, monkeypatch):
        """What tables were asked for; they say that dense is ever faster for these weights."""

        class Asked(list):
            faster = set()

        asked = Asked()

        def dense_is_ever_fastest(stem, weight, dtype, k, n, device_index):
            asked.append((stem, weight, dtype, k, n, device_index))
            return weight in asked.faster

        monkeypatch.setattr(parts_module, "use_user_tables", lambda: None)
        monkeypatch.setattr(tuning, "dense_is_ever_fastest", dense_is_ever_fastest)
        return asked

    def test_asks_the_tables_once_a_part(self, asked):
        keep_dense(parts())
        assert len(asked) == 7
        assert asked[0] == ("low_rank_ffn", "r32-32-r32", torch.float64, 16, 16, -1)
        assert asked[3] == ("low_rank_linear", "r32x3", torch.float64, 16, 72, -1)

    def test_keeps_nothing_where_dense_is_never_faster(self, asked):
        made = parts()
        keep_dense(made)
        assert {p.linears[0].dense for p in tuned_calls(made)} == {None}

    @pytest.mark.parametrize("at", range(7))
    def test_keeps_the_weight_of_a_part(self, asked, at):
        made = parts()
        part = tuned_calls(made)[at]
        asked.faster = {part.weight}
        keep_dense(made)
        for product in part.linears:
            assert product.dense is not None
            x = torch.randn(5, product.in_features, dtype=torch.float64)
            got = F.linear(x, product.dense, product.bias)
            torch.testing.assert_close(got, product.multiply(x))

    def test_is_told(self, asked):
        made = parts()
        asked.faster = {"r32x3"}
        keep_dense(made)
        assert made[1].how == ["low rank or dense, as tuned tables say, 3 in one product"] * 3

    def test_what_is_kept_is_given_to_the_op(self, asked, monkeypatch):
        made = parts()
        asked.faster = {"r32-32-r32"}
        keep_dense(made)
        given = {}
        monkeypatch.setattr(parts_module, "low_rank_ffn", lambda *_, **kwargs: given.update(kwargs))
        made[0](x_of(5), x_of(5))
        up, down = tuned_calls(made)[0].linears
        assert given["dense"] == (up.dense, down.dense)
