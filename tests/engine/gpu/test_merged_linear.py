from typing import Any

import pytest
import torch
import torch.nn.functional as F

from lada_ops.engine.gpu.merged_linear import MergedLinear, merge
from tests.engine.gpu.linears import FORMATS, make, norm_of, x_of


@pytest.fixture(autouse=True)
def _seeded_without_gradients():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("shape", [(7,), (2, 3), (1, 1), (0,)])
def test_one_linear_with_its_epilogue(format, shape):
    linear, norm = make(format), norm_of(24)
    x, residual = x_of(*shape), torch.randn(*shape, 24, dtype=torch.float64)
    got = merge([linear], "gelu", norm)(x, residual)
    torch.testing.assert_close(got, norm(F.gelu(linear(x)) + residual))


@pytest.mark.parametrize("format", FORMATS)
def test_an_activation_alone(format):
    linear, x = make(format), x_of(5)
    torch.testing.assert_close(merge([linear], "relu")(x), F.relu(linear(x)))


@pytest.mark.parametrize("format", FORMATS)
def test_merged_tensors_are_stored_once(format):
    linears = [make(format) for _ in range(3)]
    before = [{name: p.clone() for name, p in x.named_parameters()} for x in linears]
    merged = merge(linears)
    for linear, values in zip(linears, before, strict=True):
        for name, parameter in linear.named_parameters():
            storage = getattr(merged, name).untyped_storage()
            assert parameter.untyped_storage().data_ptr() == storage.data_ptr()
            assert parameter.equal(values[name])


def test_merged_blocks_are_panel_major():
    linears = [make("block sparse") for _ in range(3)]
    merged: Any = merge(linears)
    for values in (merged.values, *(linear.values for linear in linears)):
        assert values.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("format", FORMATS)
def test_merged_tensors_are_in_no_state_dict(format):
    merged = merge([make(format)], "gelu", norm_of(24))
    assert merged.state_dict() == {}
    assert list(merged.parameters()) == []


@pytest.mark.parametrize("format", FORMATS)
def test_conversion_to_another_dtype(format):
    merged, x = merge([make(format)], "gelu", norm_of(24)), x_of(5)
    want = merged(x)
    got = merged.float()(x.float())
    torch.testing.assert_close(got, want.float(), rtol=1e-4, atol=1e-5)


def test_repr():
    text = repr(merge([make("dense"), make("dense")], "gelu", norm_of(48)))
    assert text == ("MergedDense(in_features=16, out_features=[24, 24], activation='gelu', norm)")


def test_the_base_class_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        MergedLinear([make("dense")])  # pyright: ignore[reportAbstractUsage]
