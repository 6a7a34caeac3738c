"""Suite for the forward pass of an op; `tests/ops/test_<stem>.py` names the op."""

import pytest
import torch

from lada_ops.ops.reference import ACTIVATIONS
from tests.ops.operands import (
    BLOCKS,
    PATTERNS,
    Operands,
    assert_matches,
    assert_matches_scaled,
    call,
    call_ref,
    operands,
    torch_op,
)

LEADS = [(), (1,), (0,), (13,), (0, 5), (2, 0), (1, 1), (3, 5), (2, 1, 3, 2)]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def off_by_one(t: torch.Tensor) -> torch.Tensor:
    """The values of `t` as a view into a larger tensor, transposed in memory where it has rows."""
    if not t.is_floating_point() or t.ndim == 0:
        return t
    if t.ndim == 1:
        return t.new_full((2 * len(t),), float("nan"))[::2].copy_(t)
    other = t.new_full((*t.shape[:-2], t.shape[-1] + 2, t.shape[-2] + 3), float("nan"))
    return other.transpose(-1, -2)[..., 1:-2, 1:-1].copy_(t)


@pytest.mark.usefixtures("poisoned_outputs")
class OpSuite:
    """The forward pass, and the errors on wrong operands."""

    stem: str

    @pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
    @pytest.mark.parametrize("residual", [True, False], ids=["residual", "no-residual"])
    @pytest.mark.parametrize("norm", [True, False], ids=["norm", "no-norm"])
    @pytest.mark.parametrize("activation", ACTIVATIONS)
    def test_reference_is_a_dense_linear(self, activation, norm, residual, bias):
        given = operands(
            self.stem,
            dtype=torch.float64,
            activation=activation,
            residual=residual,
            bias=bias,
            norm=norm,
        )
        assert_matches(call_ref(self.stem, given), given.oracle())

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("pattern", PATTERNS)
    def test_any_pattern_and_dtype(self, pattern, dtype, device):
        given = operands(self.stem, (17,), pattern, (16, 16), dtype=dtype, device=device)
        got = call(self.stem, given)
        assert got.dtype == dtype
        assert_matches(got, given.oracle())

    @pytest.mark.parametrize("block", BLOCKS, ids=str)
    def test_any_size(self, block, device):
        given = operands(self.stem, block=block, device=device)
        assert_matches(call(self.stem, given), given.oracle())

    @pytest.mark.parametrize("lead", LEADS, ids=str)
    def test_any_leading_dimensions(self, lead, device):
        given = operands(self.stem, lead, device=device)
        assert_matches(call(self.stem, given), given.oracle())

    @pytest.mark.parametrize("lead", LEADS, ids=str)
    def test_torch_op_takes_any_leading_dimensions(self, lead, device):
        given = operands(self.stem, lead, device=device)
        assert_matches(torch_op(self.stem)(*given.args), given.oracle())

    @pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
    @pytest.mark.parametrize("activation", ACTIVATIONS)
    def test_activation_in_any_dtype(self, activation, dtype, device):
        given = operands(self.stem, (5,), dtype=dtype, device=device, activation=activation)
        assert_matches(call(self.stem, given), call_ref(self.stem, given.double()))

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("lead", [(1,), (0,), (2, 3)], ids=str)
    def test_norm(self, lead, dtype, device):
        given = operands(self.stem, lead, dtype=dtype, device=device, norm=True)
        got = call(self.stem, given)
        assert got.dtype == dtype
        # a normalised row magnifies what its terms were rounded by
        assert_matches_scaled(got, given.oracle(), roundings=2)

    @pytest.mark.parametrize("lead", [(), (1,), (6,), (2, 3)], ids=str)
    def test_any_strides(self, lead, device):
        given = operands(self.stem, lead, device=device)
        assert_matches(call(self.stem, given.map(off_by_one)), given.oracle())

    def test_expanded_x(self, device):
        given = operands(self.stem, (1,), device=device, residual=False)
        given = given.replace(x=given.x.expand(4, -1))
        assert_matches(call(self.stem, given), given.oracle())

    def test_expanded_residual(self, device):
        given = operands(self.stem, (4,), device=device)
        assert given.residual is not None
        given = given.replace(residual=given.residual[:1].expand(4, -1))
        assert_matches(call(self.stem, given), given.oracle())

    @pytest.mark.parametrize("way", ["function", "torch-op"])
    @pytest.mark.parametrize("residual", [True, False], ids=["residual", "no-residual"])
    def test_operands_stay_and_output_is_new(self, residual, way, device):
        given = operands(self.stem, device=device, residual=residual)
        before = given.map(torch.clone)
        got = call(self.stem, given) if way == "function" else torch_op(self.stem)(*given.args)
        got.fill_(123.0)
        for t, old in zip(given.args, before.args, strict=True):
            if isinstance(t, torch.Tensor):
                assert torch.equal(t, old)

    def test_training_forward_equals_inference_to_the_bit(self, device):
        given = operands(self.stem, (9,), device=device, activation="gelu")
        got = call(self.stem, given.requires_grad())
        assert got.requires_grad
        assert torch.equal(got, call(self.stem, given))

    def test_frozen_operands_record_no_gradient(self, device):
        assert not call(self.stem, operands(self.stem, device=device)).requires_grad

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("pattern", PATTERNS)
    def test_gradients_are_those_of_a_dense_linear(self, pattern, dtype, device):
        given = operands(
            self.stem, (2, 7), pattern, (16, 16), dtype=dtype, device=device, activation="gelu"
        )
        ours, exact = given.requires_grad(), given.double().requires_grad()
        weigh = torch.randn(2, 7, given.dense.shape[0], dtype=dtype, device=device)
        (call(self.stem, ours) * weigh).sum().backward()
        (call_ref(self.stem, exact) * weigh.double()).sum().backward()
        for got, want in zip(ours.grads, exact.grads, strict=True):
            assert_matches_scaled(got, want)

    def test_gradient_of_no_tokens_is_zero(self, device):
        given = operands(self.stem, (0,), device=device).requires_grad()
        call(self.stem, given).sum().backward()
        assert not any(grad.any() for grad in given.grads)

    @pytest.mark.parametrize("way", ["function", "torch-op"])
    def test_backward_leaves_the_incoming_gradient(self, way, device):
        given = operands(self.stem, device=device).requires_grad()
        y = call(self.stem, given) if way == "function" else torch_op(self.stem)(*given.args)
        grad = torch.randn_like(y)
        before = grad.clone()
        y.backward(grad)
        for leaf in given.grads:
            leaf.add_(1)
        assert torch.equal(grad, before)

    def test_meta_tensors_give_the_shape(self):
        given = operands(self.stem, (2, 3)).map(lambda t: t.to("meta"))
        assert call(self.stem, given).shape == (2, 3, given.dense.shape[0])

    # wrong operands: the error names the op, the argument, what it got and what it expected

    def refuses(self, given: Operands, error: type[Exception], *words: str):
        with pytest.raises(error) as caught:
            call(self.stem, given)
        message = str(caught.value)
        assert message.startswith(f"{self.stem}: ")
        for word in (*words, "expected"):
            assert word in message

    def test_refuses_x_of_another_width(self):
        given = operands(self.stem)
        self.refuses(given.replace(x=torch.randn(3, 34)), ValueError, "x (3, 34)")

    def test_refuses_x_without_dimensions(self):
        self.refuses(operands(self.stem).replace(x=torch.tensor(1.0)), ValueError, "x ()")

    @pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64], ids=str)
    def test_refuses_operands_that_are_no_floats(self, dtype):
        given = operands(self.stem, bias=False, residual=False)
        given = given.map(lambda t: t.to(dtype) if t.is_floating_point() else t)
        self.refuses(given, TypeError, "x is", str(dtype))

    def test_refuses_bias_of_another_shape(self):
        given = operands(self.stem).replace(bias=torch.randn(20))
        self.refuses(given, ValueError, f"{given.bias_name} (20,)", "(21,)")

    def test_refuses_bias_that_would_broadcast(self):
        given = operands(self.stem).replace(bias=torch.randn(1))
        self.refuses(given, ValueError, f"{given.bias_name} (1,)")

    def test_refuses_residual_that_would_broadcast(self):
        given = operands(self.stem).replace(residual=torch.randn(1, 21))
        self.refuses(given, ValueError, "residual (1, 21)", "(3, 21)")

    @pytest.mark.parametrize("name", ["weight", "bias"])
    def test_refuses_norm_of_another_shape(self, name):
        given = operands(self.stem, norm=True)
        assert given.norm is not None
        given = given.replace(norm=given.norm._replace(**{name: torch.randn(1)}))
        self.refuses(given, ValueError, f"norm.{name} (1,)", "(21,)")

    def test_refuses_norm_of_another_dtype(self):
        given = operands(self.stem, norm=True)
        assert given.norm is not None
        given = given.replace(norm=given.norm._replace(bias=given.norm.bias.half()))
        self.refuses(given, TypeError, "norm.bias", "torch.float16", "torch.float32")

    def test_refuses_a_negative_eps(self):
        given = operands(self.stem, norm=True)
        assert given.norm is not None
        self.refuses(given.replace(norm=given.norm._replace(eps=-1.0)), ValueError, "norm.eps -1.0")

    def test_refuses_an_unknown_activation(self):
        given = operands(self.stem).replace(activation="mish")
        self.refuses(given, ValueError, "activation 'mish'", "gelu_tanh")

    @pytest.mark.parametrize("name", ["x", "bias", "residual"])
    def test_refuses_mixed_dtypes(self, name):
        given = operands(self.stem)
        given = given.replace(**{name: getattr(given, name).half()})
        self.refuses(given, TypeError, "torch.float16", "torch.float32")

    @pytest.mark.parametrize("name", ["x", "bias", "residual"])
    def test_refuses_mixed_devices(self, name):
        given = operands(self.stem)
        given = given.replace(**{name: getattr(given, name).to("meta")})
        self.refuses(given, (TypeError, ValueError), "meta", "cpu")  # type: ignore[arg-type]

    def test_refuses_each_weight_in_another_dtype(self):
        given = operands(self.stem)
        for i, t in enumerate(given.weights):
            weights = list(given.weights)
            weights[i] = t.double() if t.is_floating_point() else t.long()
            self.refuses(given.replace(weights=tuple(weights)), TypeError, str(weights[i].dtype))

    def test_refuses_each_weight_on_another_device(self):
        given = operands(self.stem)
        for i, t in enumerate(given.weights):
            weights = list(given.weights)
            weights[i] = t.to("meta")
            self.refuses(given.replace(weights=tuple(weights)), TypeError, "meta", "cpu")

    def test_refuses_each_weight_with_a_dimension_more(self):
        given = operands(self.stem)
        for i, t in enumerate(given.weights):
            weights = list(given.weights)
            weights[i] = t[None]
            wrong = given.replace(weights=tuple(weights))
            self.refuses(wrong, (TypeError, ValueError), str(tuple(weights[i].shape)))  # type: ignore[arg-type]

    def test_refuses_each_weight_with_a_row_less(self):
        given = operands(self.stem)
        for i, t in enumerate(given.weights):
            weights = list(given.weights)
            weights[i] = t[:-1]
            self.refuses(given.replace(weights=tuple(weights)), ValueError)
