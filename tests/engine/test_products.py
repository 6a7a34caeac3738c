import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lada_ops import BlockSparseLinear, LowRankLinear, SparseLowRankLinear
from lada_ops.engine.products import (
    LowRankFeedForward,
    Product,
    Projections,
    feed_forward_of,
    product_of,
)

BLOCK = (8, 4)
KINDS = {
    "dense": lambda out=24, **more: nn.Linear(16, out, **more),
    "low rank": lambda out=24, rank=5, **more: LowRankLinear(16, out, rank, **more),
    "block sparse": lambda out=24, block=BLOCK, **more: BlockSparseLinear(
        16, out, block, 0.4, **more
    ),
    "sparse + low rank": lambda out=24, **more: SparseLowRankLinear(16, out, 3, BLOCK, 0.3, **more),
}
JOINED = ["dense", "low rank", "block sparse"]


def make(kind, *args, **kwargs):
    linear = KINDS[kind](*args, **kwargs, dtype=torch.float64)
    if linear.bias is not None:
        nn.init.normal_(linear.bias)
    if kind == "sparse + low rank":
        nn.init.normal_(linear.values)
    return linear


def norm_of(features):
    norm = nn.LayerNorm(features, eps=1e-3, dtype=torch.float64)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


def x_of(*shape):
    return torch.randn(*shape, 16, dtype=torch.float64)


@pytest.fixture(autouse=True)
def _exactly():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(7,), (2, 3), (1, 1), (0,)])
def test_one_linear_with_its_epilogue(kind, shape):
    linear, norm = make(kind), norm_of(24)
    x, residual = x_of(*shape), torch.randn(*shape, 24, dtype=torch.float64)
    got = product_of([linear], "gelu", norm)(x, residual)
    torch.testing.assert_close(got, norm(F.gelu(linear(x)) + residual))


@pytest.mark.parametrize("kind", KINDS)
def test_an_activation_alone(kind):
    linear, x = make(kind), x_of(5)
    torch.testing.assert_close(product_of([linear], "relu")(x), F.relu(linear(x)))


@pytest.mark.parametrize("biases", [(True,) * 3, (False,) * 3, (True, False, True)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_projections_are_those_of_the_linears(kind, biases):
    linears = [make(kind, bias=bias) for bias in biases]
    x = x_of(2, 3)
    want = [linear(x) for linear in linears]
    torch.testing.assert_close(Projections(linears)(x), want)


def test_projections_of_several_widths():
    linears = [make("dense", out) for out in (8, 24, 3)]
    x = x_of(5)
    torch.testing.assert_close(Projections(linears)(x), [linear(x) for linear in linears])


def test_projections_of_several_ranks():
    linears = [make("low rank", rank=rank) for rank in (2, 7, 1)]
    x = x_of(5)
    projections = Projections(linears)
    torch.testing.assert_close(projections(x), [linear(x) for linear in linears])
    assert len(projections.products) == 1


@pytest.mark.parametrize(
    ("kinds", "how"),
    [
        (["dense"] * 3, ["dense, 3 in one product"] * 3),
        (["low rank"] * 3, ["low rank, 3 in one product"] * 3),
        (["block sparse"] * 3, ["block sparse, 3 in one product"] * 3),
        (["sparse + low rank"] * 3, ["sparse + low rank"] * 3),
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


@pytest.mark.parametrize("kind", JOINED)
def test_what_is_joined_is_stored_once(kind):
    linears = [make(kind) for _ in range(3)]
    before = [{name: p.clone() for name, p in x.named_parameters()} for x in linears]
    (product,) = Projections(linears).products
    for linear, values in zip(linears, before, strict=True):
        for name, parameter in linear.named_parameters():
            joined = getattr(product, name).untyped_storage()
            assert parameter.untyped_storage().data_ptr() == joined.data_ptr()
            assert parameter.equal(values[name])


def test_joined_blocks_are_read_without_a_copy():
    linears = [make("block sparse") for _ in range(3)]
    (product,) = Projections(linears).products
    for values in (product.values, *(linear.values for linear in linears)):
        assert values.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_it_is_in_a_state_dict(kind):
    product = product_of([make(kind)], "gelu", norm_of(24))
    assert product.state_dict() == {}
    assert list(product.parameters()) == []


@pytest.mark.parametrize("kind", KINDS)
def test_it_follows_another_dtype(kind):
    product, x = product_of([make(kind)], "gelu", norm_of(24)), x_of(5)
    want = product(x)
    got = product.float()(x.float())
    torch.testing.assert_close(got, want.float(), rtol=1e-4, atol=1e-5)


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
        torch.testing.assert_close(feed_forward(x), norm(down(F.gelu(up(x))) + x))

    def test_of_high_rank_are_two(self):
        up = LowRankLinear(16, 300, 4, dtype=torch.float64)
        down = LowRankLinear(300, 160, 129, dtype=torch.float64)
        assert type(feed_forward_of(up, down, "gelu", norm_of(160))) is not LowRankFeedForward

    @pytest.mark.parametrize("kind", KINDS)
    def test_of_other_kinds(self, kind):
        up, down, norm = make(kind), nn.Linear(24, 16, dtype=torch.float64), norm_of(16)
        x = x_of(2, 3)
        feed_forward = feed_forward_of(up, down, "relu", norm)
        torch.testing.assert_close(feed_forward(x), norm(down(F.relu(up(x))) + x))
        assert feed_forward.how == [kind, "dense"]


def test_printed_it_says_what_it_is():
    text = repr(product_of([make("dense"), make("dense")], "gelu", norm_of(48)))
    assert text == ("DenseProduct(in_features=16, out_features=[24, 24], activation='gelu', norm)")


def test_a_product_alone_is_none_of_the_kinds():
    with pytest.raises(TypeError, match="abstract"):
        Product([make("dense")])  # pyright: ignore[reportAbstractUsage]
