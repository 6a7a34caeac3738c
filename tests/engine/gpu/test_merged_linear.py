from typing import Any

import pytest
import torch
import torch.nn.functional as F

from lada_ops.engine.gpu.merged_linear import MergedLinear, merge
from tests.engine.gpu.linears import KINDS, make, norm_of, x_of


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
    got = merge([linear], "gelu", norm)(x, residual)
    torch.testing.assert_close(got, norm(F.gelu(linear(x)) + residual))


@pytest.mark.parametrize("kind", KINDS)
def test_an_activation_alone(kind):
    linear, x = make(kind), x_of(5)
    torch.testing.assert_close(merge([linear], "relu")(x), F.relu(linear(x)))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_joined_is_stored_once(kind):
    linears = [make(kind) for _ in range(3)]
    before = [{name: p.clone() for name, p in x.named_parameters()} for x in linears]
    product = merge(linears)
    for linear, values in zip(linears, before, strict=True):
        for name, parameter in linear.named_parameters():
            joined = getattr(product, name).untyped_storage()
            assert parameter.untyped_storage().data_ptr() == joined.data_ptr()
            assert parameter.equal(values[name])


def test_joined_blocks_are_read_without_a_copy():
    linears = [make("block sparse") for _ in range(3)]
    product: Any = merge(linears)
    for values in (product.values, *(linear.values for linear in linears)):
        assert values.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_it_is_in_a_state_dict(kind):
    product = merge([make(kind)], "gelu", norm_of(24))
    assert product.state_dict() == {}
    assert list(product.parameters()) == []


@pytest.mark.parametrize("kind", KINDS)
def test_it_follows_another_dtype(kind):
    product, x = merge([make(kind)], "gelu", norm_of(24)), x_of(5)
    want = product(x)
    got = product.float()(x.float())
    torch.testing.assert_close(got, want.float(), rtol=1e-4, atol=1e-5)


def test_printed_it_says_what_it_is():
    text = repr(merge([make("dense"), make("dense")], "gelu", norm_of(48)))
    assert text == ("MergedDense(in_features=16, out_features=[24, 24], activation='gelu', norm)")


def test_a_product_alone_is_none_of_the_kinds():
    with pytest.raises(TypeError, match="abstract"):
        MergedLinear([make("dense")])  # pyright: ignore[reportAbstractUsage]
