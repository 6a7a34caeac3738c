import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lada_ops import BlockSparseLinear, LowRankLinear, SparseLowRankLinear, optimize
from lada_ops.engine.optimize import fast_dtypes
from lada_ops.modules.packed_linear import PackedLinear, pack_linears

pytestmark = pytest.mark.skipif(not fast_dtypes(), reason="no native library was built")
SOURCES = {
    "dense": lambda **kwargs: nn.Linear(48, 64, **kwargs),
    "low rank": lambda **kwargs: LowRankLinear(48, 64, 10, **kwargs),
    "block sparse": lambda **kwargs: BlockSparseLinear(48, 64, (16, 8), 0.3, **kwargs),
    "both": lambda **kwargs: SparseLowRankLinear(48, 64, 6, (32, 16), 0.3, **kwargs),
}


def packed(source, dtype=torch.float32):
    return PackedLinear(source, pack_linears([source], dtype))


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", SOURCES)
def test_computes_the_same_as_its_source(kind, bias):
    source = SOURCES[kind](bias=bias)
    x = torch.randn(7, 48)
    torch.testing.assert_close(packed(source)(x), source(x), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", SOURCES)
def test_weight_and_bias_are_read_as_those_of_a_linear(kind, bias):
    source = SOURCES[kind](bias=bias)
    module = packed(source)
    torch.testing.assert_close(module.weight + 0, source.weight + 0, rtol=1e-5, atol=1e-6)
    assert (module.weight.shape, module.weight.dtype) == ((64, 48), torch.float32)
    assert (module.bias is None) == (source.bias is None)
    if source.bias is not None:
        torch.testing.assert_close(module.bias, source.bias.detach())


@torch.no_grad()
@pytest.mark.parametrize("lead", [(), (1,), (0,), (2, 3), (2, 0, 3)], ids=str)
def test_any_leading_dimensions(lead):
    source = SOURCES["both"]()
    x = torch.randn(*lead, 48)
    torch.testing.assert_close(packed(source)(x), source(x), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    "x",
    [torch.randn(48, 7).T, torch.randn(7, 96)[:, ::2], torch.randn(7, 50)[:, 1:49]],
    ids=["transposed", "every second", "in the middle"],
)
def test_any_strides(x):
    source = SOURCES["low rank"]()
    torch.testing.assert_close(packed(source)(x), source(x), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_activation_is_kept():
    source = SOURCES["low rank"](activation="gelu")
    x = torch.randn(7, 48)
    torch.testing.assert_close(packed(source)(x), source(x), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_residual_comes_after_the_activation():
    source = SOURCES["low rank"](activation="gelu")
    x, residual = torch.randn(2, 3, 48), torch.randn(2, 3, 64)
    torch.testing.assert_close(
        packed(source)(x, residual), source(x, residual), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    ("residual", "error", "message"),
    [
        (torch.randn(1, 64), ValueError, r"residual \(1, 64\); expected \(7, 64\)"),
        (torch.randn(7, 64).half(), TypeError, "residual is torch.float16 on cpu; expected"),
    ],
    ids=["shape", "dtype"],
)
def test_a_residual_that_does_not_fit_is_refused(residual, error, message):
    with pytest.raises(error, match=f"PackedLinear: {message}"):
        packed(SOURCES["low rank"]())(torch.randn(7, 48), residual)


def test_loading_a_state_dict_is_refused():
    linear = packed(SOURCES["dense"]())
    with pytest.raises(RuntimeError, match="PackedLinear: cannot load .* load its weights first"):
        linear.load_state_dict(linear.state_dict())


@torch.no_grad()
@pytest.mark.parametrize("kind", list(SOURCES))
def test_packed_dense_it_computes_the_same_and_keeps_its_factors(kind):
    source = SOURCES[kind]()
    x = torch.randn(7, 48)
    linear = PackedLinear(source, pack_linears([source], torch.bfloat16, True), True)
    assert F.cosine_similarity(linear(x), source(x)).min() > 0.999
    if kind != "dense":  # rounding is for what is packed
        torch.testing.assert_close(linear.state_dict(), dict(source.state_dict()), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_y_has_the_dtype_of_x(dtype):
    assert packed(SOURCES["both"]())(torch.randn(7, 48, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", SOURCES)
def test_state_dict_is_that_of_the_source(kind, dtype):
    source = SOURCES[kind]()
    want = source.state_dict()
    found = packed(source, dtype).state_dict()
    assert found.keys() == want.keys()
    for name, tensor in want.items():
        exact = tensor.ndim == 1 or dtype == torch.float32  # biases and indices are kept
        torch.testing.assert_close(found[name], tensor if exact else tensor.to(dtype).float())


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.randn(7, 47), ValueError, r"x \(7, 47\); expected \(\.\.\., 48\)"),
        (torch.zeros(7, 48, dtype=torch.long), TypeError, "x is torch.int64 on cpu; expected a fl"),
        (torch.zeros(7, 48, device="meta"), TypeError, "on meta; expected .* on the CPU"),
        (torch.randn(7, 48, requires_grad=True), RuntimeError, "records gradients"),
    ],
    ids=["features", "dtype", "device", "gradients"],
)
def test_bad_inputs_are_refused(x, error, message):
    with pytest.raises(error, match=f"PackedLinear: .*{message}"):
        packed(SOURCES["dense"]())(x)


def test_repr_has_the_source_and_the_dtype():
    text = repr(packed(SOURCES["low rank"](), torch.bfloat16))
    assert "LowRankLinear(in_features=48" in text
    assert "packed=bfloat16" in text


@torch.no_grad()
def test_an_encoder_of_torch_reads_weights_of_optimized_linears():
    layer = nn.TransformerEncoderLayer(48, 4, 64, dropout=0, batch_first=True)
    layer.linear1 = SOURCES["low rank"]()
    encoder, x = nn.TransformerEncoder(layer, 2).eval(), torch.randn(3, 5, 48)
    want = encoder(x)
    torch.testing.assert_close(optimize(encoder)(x), want, rtol=1e-4, atol=1e-5)
