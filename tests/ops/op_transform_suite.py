"""Suite for torch's transforms of an op: autograd, autocast, compile, export, fake tensors."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, func
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

from lada_ops.ops.reference import ACTIVATIONS
from tests.ops.op_suite import off_by_one
from tests.ops.operands import Operands, assert_matches, call, call_ref, operands, torch_op

QUICK_CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")
OPERANDS = {
    "one token": lambda stem: operands(stem, ()),
    "no tokens": lambda stem: operands(stem, (0,)),
    "bias": lambda stem: operands(stem, residual=False),
    "residual": lambda stem: operands(stem, bias=False),
    "norm": lambda stem: operands(stem, norm=True),
    "no blocks": lambda stem: operands(stem, pattern="no-blocks"),
    "strides": lambda stem: operands(stem, (2, 3)).map(off_by_one),
    "float16": lambda stem: operands(stem, dtype=torch.float16),
    "bfloat16": lambda stem: operands(stem, dtype=torch.bfloat16),
    "float64": lambda stem: operands(stem, dtype=torch.float64),
}

# what transforms a function f of x; each must give what it gives of the reference
TRANSFORMS: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor], Any]] = {
    "grad": lambda f, x: func.grad(lambda t: f(t).square().sum())(x),
    "jacrev": lambda f, x: func.jacrev(f)(x),
    "jacfwd": lambda f, x: func.jacfwd(f)(x),
    "jvp": lambda f, x: func.jvp(f, (x,), (x.cos(),)),
    "hessian": lambda f, x: func.hessian(lambda t: f(t).square().sum())(x),
    "vmap": lambda f, x: func.vmap(f)(torch.stack([x, 2 * x])),
    "vmap of gradients": lambda f, x: func.vmap(func.jacrev(f))(torch.stack([x, 2 * x])),
    "dual numbers": lambda f, x: _tangent(f, x),
    "vectorized jacobian": lambda f, x: torch.autograd.functional.jacobian(f, x, vectorize=True),
}


def _tangent(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor | None:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(f(forward_ad.make_dual(x, x.cos()))).tangent


class OpTransformSuite:
    """The op under transforms; a subclass in `tests/test_<stem>.py` names the op."""

    stem: str

    @pytest.mark.parametrize("optional", [True, False], ids=["bias-residual-norm", "neither"])
    def test_opcheck(self, optional, device):
        given = operands(
            self.stem,
            (2, 3),
            device=device,
            activation="gelu",
            bias=optional,
            residual=optional,
            norm=optional,
        )
        torch.library.opcheck(torch_op(self.stem), given.requires_grad().args)

    @pytest.mark.parametrize("change", OPERANDS)
    def test_opcheck_without_compilation(self, change, device):
        given = OPERANDS[change](self.stem).map(lambda t: t.to(device))
        torch.library.opcheck(torch_op(self.stem), given.args, test_utils=QUICK_CHECKS)

    @pytest.mark.parametrize("way", ["function", "torch-op"])
    @pytest.mark.parametrize("activation", ACTIVATIONS)
    def test_gradients(self, activation, way):
        given = operands(
            self.stem, (2, 2), "random", (2, 3), 2, torch.float64, activation=activation
        ).requires_grad()
        assert torch.autograd.gradcheck(self._function(given, way), given.tensors)

    @pytest.mark.parametrize("way", ["function", "torch-op"])
    @pytest.mark.parametrize("residual", [True, False], ids=["residual", "no-residual"])
    @pytest.mark.parametrize("activation", ["none", "gelu"])
    def test_gradients_through_a_norm(self, activation, residual, way):
        given = operands(
            *(self.stem, (2,), "random", (2, 3), 2, torch.float64),
            activation=activation,
            residual=residual,
            norm=True,
        ).requires_grad()
        assert torch.autograd.gradcheck(self._function(given, way), given.tensors)

    @pytest.mark.parametrize("way", ["function", "torch-op"])
    @pytest.mark.parametrize("pattern", ["empty-rows", "no-blocks", "one-block"])
    def test_gradients_of_patterns(self, pattern, way):
        given = operands(self.stem, (2,), pattern, (2, 3), 2, torch.float64).requires_grad()
        assert torch.autograd.gradcheck(self._function(given, way), given.tensors)

    @pytest.mark.parametrize("activation", ACTIVATIONS)
    def test_second_gradients(self, activation):
        given = operands(
            self.stem, (2,), "one-block", (2, 3), 1, torch.float64, activation=activation
        ).requires_grad()
        assert torch.autograd.gradgradcheck(self._function(given, "torch-op"), given.tensors)

    def test_one_operand_alone_is_trained(self):
        given = operands(self.stem, dtype=torch.float64, activation="silu")
        exact = given.requires_grad()
        call_ref(self.stem, exact).square().sum().backward()
        for which, want in enumerate(exact.grads):
            ours = given.map(torch.clone)
            ours.tensors[which].requires_grad_()
            call(self.stem, ours).square().sum().backward()
            grads = [t.grad for t in ours.tensors]
            got = grads.pop(which)
            assert got is not None
            assert_matches(got, want)
            assert not any(grad is not None for grad in grads)

    def _function(self, given: Operands, way: str):
        """The op as a function of the differentiable tensors of `given`."""
        if way == "function":
            return lambda *tensors: call(self.stem, given.with_tensors(tensors))
        return lambda *tensors: torch_op(self.stem)(*given.with_tensors(tensors).args)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_autocast_gives_its_dtype(self, dtype, device):
        given = operands(self.stem, device=device).requires_grad()
        with torch.autocast(device.type, dtype):
            y = call(self.stem, given)
        y.float().sum().backward()
        assert y.dtype == dtype
        assert {t.grad.dtype for t in given.tensors if t.grad is not None} == {torch.float32}

    def test_autocast_casts_mixed_operands(self, device):
        given = operands(self.stem, device=device)
        given = given.replace(x=given.x.bfloat16())
        with torch.autocast(device.type, torch.bfloat16):
            assert call(self.stem, given).dtype == torch.bfloat16

    def test_autocast_of_another_device_changes_nothing(self, device):
        given = operands(self.stem, device=device)
        other = "cuda" if device.type == "cpu" else "cpu"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch: no CUDA
            autocast = torch.autocast(other, torch.bfloat16)
        with autocast:
            assert call(self.stem, given).dtype == torch.float32

    def test_autocast_leaves_fp64(self, device):
        given = operands(self.stem, dtype=torch.float64, device=device)
        with torch.autocast(device.type, torch.bfloat16):
            assert call(self.stem, given).dtype == torch.float64

    def test_autocast_equals_that_of_a_linear(self, device):
        given = operands(self.stem, device=device, activation="gelu", residual=False)
        with torch.autocast(device.type, torch.bfloat16):
            got, want = call(self.stem, given), call_ref(self.stem, given)
        assert got.dtype == want.dtype
        assert_matches(got, call_ref(self.stem, given.double()))

    def test_compiled_under_autocast_has_the_dtypes_of_eager(self, device):
        given = operands(self.stem, device=device).requires_grad()

        def step():
            with torch.autocast(device.type, torch.bfloat16):
                y = call(self.stem, given)
            return y, torch.autograd.grad(y.float().sum(), given.tensors)

        eager, compiled = step(), torch.compile(step, backend="aot_eager")()
        assert compiled[0].dtype == eager[0].dtype
        assert_matches(compiled[0], eager[0].double())
        for got, want in zip(compiled[1], eager[1], strict=True):
            torch.testing.assert_close(got, want, rtol=2e-2, atol=2e-2)

    def test_compiles_as_one_graph(self, device):
        given = operands(self.stem, (2, 5), device=device, activation="gelu")

        compiled = torch.compile(lambda now: call(self.stem, now) * 2, fullgraph=True)
        torch.testing.assert_close(compiled(given), call(self.stem, given) * 2)

    def test_compiled_gradients(self, device):
        given = operands(self.stem, (2, 5), device=device, activation="gelu").requires_grad()
        compiled = torch.compile(
            lambda: call(self.stem, given).square().sum(), fullgraph=True, backend="aot_eager"
        )
        got = torch.autograd.grad(compiled(), given.tensors)
        want = torch.autograd.grad(call(self.stem, given).square().sum(), given.tensors)
        torch.testing.assert_close(got, want)

    @pytest.mark.parametrize("transform", TRANSFORMS)
    @pytest.mark.parametrize("trained", [True, False], ids=["trained", "frozen"])
    def test_transformed(self, trained, transform, device):
        given = operands(
            self.stem, (2,), "random", (2, 3), 2, torch.float64, device, "silu", norm=True
        )
        given, x = given.requires_grad() if trained else given, given.x
        of_ours, of_reference = (
            TRANSFORMS[transform](lambda t, way=way: way(self.stem, given.replace(x=t)), x)
            for way in (call, call_ref)
        )
        torch.testing.assert_close(of_ours, of_reference)

    def test_compiled_in_forward_mode(self, device):
        given = operands(self.stem, (2,), "random", (2, 3), 2, device=device, activation="silu")

        def tangent(x: Tensor) -> Tensor:
            return func.jvp(lambda t: call(self.stem, given.replace(x=t)), (x,), (x.cos(),))[1]

        compiled = torch.compile(tangent, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(given.x), tangent(given.x))

    def test_transformed_in_its_weights(self, device):
        given = operands(self.stem, (2,), "random", (2, 3), 2, torch.float64, device)

        def of(*tensors: Tensor) -> Tensor:
            return call(self.stem, given.with_tensors(tensors))

        both = [torch.stack([t, 2 * t]) for t in given.tensors]
        want = [of(*given.tensors), of(*(2 * t for t in given.tensors))]
        torch.testing.assert_close(func.vmap(of)(*both), torch.stack(want))

    def test_compiled_with_any_number_of_tokens(self, device):
        compiled = torch.compile(
            lambda now: call(self.stem, now), dynamic=True, backend="aot_eager"
        )
        for tokens in (7, 1, 12, 0):
            given = operands(self.stem, (tokens,), device=device)
            torch.testing.assert_close(compiled(given), call(self.stem, given))

    def test_exports_to_plain_operators(self, device):
        given = operands(self.stem, (2, 5), device=device, activation="gelu")
        stem = self.stem

        class Module(torch.nn.Module):
            def forward(self, x):
                return call(stem, given.replace(x=x, residual=None))

        exported = torch.export.export(
            Module(), (given.x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)
        )
        targets = {str(n.target) for n in exported.graph.nodes if n.op == "call_function"}
        assert not [target for target in targets if "lada" in target]
        longer = operands(self.stem, (3, 5), device=device).x
        want = call(self.stem, given.replace(x=longer, residual=None))
        torch.testing.assert_close(exported.module()(longer), want)

    def test_graph_on_cuda_is_the_op(self):
        """The branch for CUDA, traced with fake tensors: no GPU is needed."""
        given = operands(self.stem, (2, 5), activation="gelu")
        with FakeTensorMode():
            fake = given.map(lambda t: torch.empty(t.shape, dtype=t.dtype, device="cuda"))
            graph = make_fx(lambda x: call(self.stem, fake.replace(x=x)))(fake.x)
            y = call(self.stem, fake)
        targets = [str(n.target) for n in graph.graph.nodes if n.op == "call_function"]
        assert targets == [f"lada.{self.stem}.default"]
        assert (y.device.type, y.shape) == ("cuda", (2, 5, given.dense.shape[0]))
