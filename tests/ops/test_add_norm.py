"""The op `add_norm`, which follows what torch multiplies."""

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from lada_ops.ops.add_norm import add_norm
from lada_ops.ops.reference import ACTIVATIONS, Norm
from tests.kernels.operands import ACTIVATIONS as ORACLES
from tests.ops.op_suite import DTYPES, LEADS, off_by_one
from tests.ops.operands import assert_matches

FEATURES = 21
op = torch.ops.lada.add_norm


def draw(*lead: int, dtype=torch.float32, device="cpu") -> tuple[Tensor, Tensor, Norm]:
    """x, residual and norm."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64).to(device, dtype)

    norm = Norm(normal(FEATURES) + 1, normal(FEATURES), 1e-5)
    return normal(*lead, FEATURES), normal(*lead, FEATURES), norm


def oracle(x: Tensor, activation: str, residual: Tensor | None, norm: Norm | None) -> Tensor:
    """Expected output, in fp64, step by step."""
    y = ORACLES[activation](x.double())
    if residual is not None:
        y = y + residual.double()
    if norm is not None:
        weight, bias, eps = norm
        y = y - y.mean(-1, keepdim=True)
        variance = y.square().mean(-1, keepdim=True)
        y = y / (variance + eps).sqrt() * weight.double() + bias.double()
    return y


@pytest.mark.usefixtures("poisoned_outputs")
class TestForward:
    @pytest.mark.parametrize("residual", [True, False], ids=["residual", "no-residual"])
    @pytest.mark.parametrize("norm", [True, False], ids=["norm", "no-norm"])
    @pytest.mark.parametrize("activation", ACTIVATIONS)
    def test_every_step_may_be_left_out(self, activation, norm, residual, device):
        x, r, n = draw(2, 3, dtype=torch.float64, device=device)
        given = activation, r if residual else None, n if norm else None
        got = add_norm(x, activation=given[0], residual=given[1], norm=given[2])
        assert_matches(got, oracle(x, *given))

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("lead", LEADS, ids=str)
    def test_any_dtype_and_leading_dimensions(self, lead, dtype, device):
        x, residual, norm = draw(*lead, dtype=dtype, device=device)
        got = add_norm(x, activation="relu", residual=residual, norm=norm)
        assert got.dtype == dtype
        torch.testing.assert_close(
            got.double(), oracle(x, "relu", residual, norm), rtol=5e-2, atol=5e-2
        )

    def test_any_strides(self, device):
        x, residual, norm = draw(2, 3, device=device)
        weight, bias = (off_by_one(t) for t in norm[:2])
        got = add_norm(
            off_by_one(x), residual=off_by_one(residual), norm=Norm(weight, bias, norm.eps)
        )
        assert_matches(got, oracle(x, "none", residual, norm))

    def test_without_any_step_it_is_x_itself(self, device):
        x, *_ = draw(3, device=device)
        assert add_norm(x) is x

    @pytest.mark.parametrize("step", ["activation", "residual", "norm"])
    def test_operands_stay_and_output_is_new(self, step, device):
        x, residual, norm = draw(3, device=device)
        before = x.clone(), residual.clone()
        steps = {"activation": "relu", "residual": residual, "norm": norm}
        add_norm(x, **{step: steps[step]}).fill_(123.0)
        assert torch.equal(x, before[0])
        assert torch.equal(residual, before[1])

    def test_meta_tensors_give_the_shape(self):
        x, residual, norm = draw(2, 3, device="meta")
        assert add_norm(x, residual=residual, norm=norm).shape == (2, 3, FEATURES)


class TestTransforms:
    @pytest.mark.parametrize("steps", [True, False], ids=["all", "activation"])
    def test_opcheck(self, steps, device):
        x, residual, (weight, bias, eps) = draw(2, 3, device=device)
        tensors = [t.requires_grad_() for t in (residual, weight, bias)] if steps else [None] * 3
        args = (x.requires_grad_(), "gelu", *tensors, eps)
        torch.library.opcheck(op.default, args)

    @pytest.mark.parametrize("norm", [True, False], ids=["norm", "no-norm"])
    @pytest.mark.parametrize("activation", ["none", "gelu", "tanh"])
    def test_gradients(self, activation, norm):
        x, residual, (weight, bias, eps) = draw(2, 2, dtype=torch.float64)
        tensors = [x, residual, weight, bias] if norm else [x, residual]
        tensors = [t.requires_grad_() for t in tensors]

        def function(x, residual, *affine):
            return op(x, activation, residual, *affine, eps=eps)

        assert torch.autograd.gradcheck(function, tensors)
        assert torch.autograd.gradgradcheck(function, tensors)

    @pytest.mark.parametrize("norm", [True, False], ids=["norm", "no-norm"])
    def test_gradients_share_no_memory(self, norm):
        x, residual, (weight, bias, eps) = draw(3)
        affine = (weight, bias, eps) if norm else ()
        y = op(x.requires_grad_(), "none", residual.requires_grad_(), *affine)
        grad = torch.randn_like(y)
        before = grad.clone()
        y.backward(grad)
        assert x.grad is not None
        assert residual.grad is not None
        assert torch.equal(x.grad, residual.grad)
        kept = residual.grad.clone()
        x.grad.add_(1)
        assert torch.equal(residual.grad, kept)
        assert torch.equal(grad, before)

    def test_autocast_casts_as_a_linear(self, device):
        x, residual, norm = draw(3, device=device)
        with torch.autocast(device.type, torch.bfloat16):
            y = add_norm(x.bfloat16(), residual=residual, norm=norm)
        assert y.dtype == torch.bfloat16

    def test_compiles_as_one_graph(self, device):
        x, residual, norm = draw(2, 5, device=device)

        def double(x):
            return add_norm(x, activation="gelu", residual=residual, norm=norm) * 2

        torch.testing.assert_close(torch.compile(double, fullgraph=True)(x), double(x))

    def test_exports_to_plain_operators(self, device):
        x, residual, norm = draw(2, 5, device=device)

        class Module(torch.nn.Module):
            def forward(self, x):
                return add_norm(x, activation="gelu", residual=residual, norm=norm)

        graph = torch.export.export(Module(), (x,)).graph
        targets = [str(n.target) for n in graph.nodes if n.op == "call_function"]
        assert targets
        assert not [target for target in targets if "lada" in target]

    def test_graph_on_cuda_is_the_op(self):
        with FakeTensorMode():
            x = torch.empty(2, 5, FEATURES, device="cuda")
            graph = make_fx(lambda x: add_norm(x, activation="gelu", residual=x))(x)
        targets = [str(n.target) for n in graph.graph.nodes if n.op == "call_function"]
        assert targets == ["lada.add_norm.default"]


class TestErrors:
    """They name the op, the argument, what came and what was expected."""

    @pytest.mark.parametrize(
        ("change", "error", "words"),
        [
            ({"x": torch.tensor(1.0)}, ValueError, r"x \(\); expected \(\.\.\., features\)"),
            ({"x": torch.ones(3, 21).long()}, TypeError, "x is torch.int64; expected one of"),
            ({"residual": torch.ones(1, 21)}, ValueError, r"residual \(1, 21\); .* \(3, 21\)"),
            ({"residual": torch.ones(3, 21).half()}, TypeError, "residual is torch.float16"),
            ({"activation": "mish"}, ValueError, "activation 'mish'; expected one of"),
            ({"norm": Norm(torch.ones(1), torch.ones(21))}, ValueError, r"norm.weight \(1,\)"),
            ({"norm": Norm(torch.ones(21), torch.ones(20))}, ValueError, r"norm.bias \(20,\)"),
            ({"norm": Norm(torch.ones(21), torch.ones(21), -1.0)}, ValueError, "norm.eps -1.0"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    def test_wrong_operands(self, change, error, words):
        x, residual, norm = draw(3)
        given = {"x": x, "residual": residual, "norm": norm} | change
        with pytest.raises(error, match=f"^add_norm: .*{words}"):
            add_norm(**given)
