"""Suite of tests for compressed modules; the test file of each stem names its module."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_model, save_model
from torch import nn

from lada_ops.formats.counts import Counts

OUT, IN = 24, 40
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def is_panel_major(values: torch.Tensor) -> bool:
    return values.transpose(1, 2).is_contiguous()


class ModuleSuite:
    """cls: the module; size: its arguments beside the shape; exact: those that lose nothing."""

    cls: Any
    size: dict[str, Any]
    exact: dict[str, Any]
    tensors: set[str]
    repr: str

    @property
    def sparse(self) -> bool:
        return "block" in self.size

    def make(self, **kwargs: Any) -> Any:
        """A module with random weights and bias."""
        module = self.cls(IN, OUT, **self.size, **kwargs)
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.3)
        return module

    def dense(self, module: Any) -> nn.Linear:
        """The same layer, dense, in fp64."""
        return module.to_linear().double()

    def test_exact_size_is_the_layer_it_replaces(self, device):
        linear = nn.Linear(IN, OUT, device=device)
        x = torch.randn(2, 5, IN, device=device)
        module = self.cls.from_linear(linear, **self.exact)
        torch.testing.assert_close(module(x), linear(x), rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("bias", [True, False])
    def test_forward_is_that_of_its_format(self, bias, device):
        module = self.make(bias=bias, device=device, dtype=torch.float64)
        x = torch.randn(3, IN, device=device, dtype=torch.float64)
        want = F.linear(x, module.format.to_dense(), module.bias)
        torch.testing.assert_close(module(x), want)

    def test_activation_then_residual(self, device):
        module = self.make(activation="relu", device=device, dtype=torch.float64)
        x = torch.randn(3, IN, device=device, dtype=torch.float64)
        residual = torch.randn(3, OUT, device=device, dtype=torch.float64)
        want = F.relu(self.dense(module)(x)) + residual
        torch.testing.assert_close(module(x, residual), want)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_from_linear_keeps_dtype_and_device(self, dtype, device):
        linear = nn.Linear(IN, OUT, device=device, dtype=dtype)
        module = self.cls.from_linear(linear, **self.size)
        assert {t.dtype for t in module.parameters()} == {dtype}
        assert {t.device.type for t in module.state_dict().values()} == {device.type}
        x = torch.randn(2, IN, device=device, dtype=dtype)
        assert module(x).dtype == dtype

    @pytest.mark.parametrize("bias", [True, False])
    def test_from_linear_keeps_the_bias(self, bias):
        linear = nn.Linear(IN, OUT, bias=bias)
        module = self.cls.from_linear(linear, **self.size)
        assert (module.bias is not None) == bias
        assert not bias or torch.equal(module.bias, linear.bias)

    def test_from_linear_shares_no_memory(self):
        linear = nn.Linear(IN, OUT)
        module = self.cls.from_linear(linear, **self.exact)
        before = copy.deepcopy(module.state_dict())
        with torch.no_grad():
            for parameter in linear.parameters():
                parameter.fill_(7)
        assert all(torch.equal(t, before[n]) for n, t in module.state_dict().items())

    def test_from_format_shares_no_memory(self):
        first = self.make()
        second = self.cls.from_format(first.format, first.bias)
        before = copy.deepcopy(second.state_dict())
        for tensor in first.state_dict().values():
            tensor.fill_(7)
        assert all(torch.equal(t, before[n]) for n, t in second.state_dict().items())

    def test_from_format_lays_tensors_out_as_a_new_module_does(self):
        first = self.make()
        strides = {name: tensor.stride() for name, tensor in first.state_dict().items()}
        for name in self.tensors & {"u", "v"}:
            parameter = first.get_parameter(name)
            parameter.data = parameter.data.T.contiguous().T
        second = self.cls.from_format(first.format, first.bias)
        assert {name: tensor.stride() for name, tensor in second.state_dict().items()} == strides

    def test_from_linear_leaves_the_layer(self):
        linear = nn.Linear(IN, OUT)
        before = copy.deepcopy(linear.state_dict())
        self.cls.from_linear(linear, **self.size)
        assert all(torch.equal(t, before[n]) for n, t in linear.state_dict().items())

    def test_from_linear_takes_the_activation(self):
        module = self.cls.from_linear(nn.Linear(IN, OUT), **self.size, activation="gelu")
        assert module.activation == "gelu"

    @pytest.mark.parametrize("bias", [True, False])
    def test_to_linear_is_the_same_layer(self, bias):
        module = self.make(bias=bias)
        linear = module.to_linear()
        x = torch.randn(3, IN)
        assert type(linear) is nn.Linear
        torch.testing.assert_close(linear(x), module(x))

    def test_to_linear_shares_no_memory(self):
        module = self.make()
        linear = module.to_linear()
        with torch.no_grad():
            for parameter in linear.parameters():
                parameter.zero_()
        assert all(parameter.any() for parameter in module.parameters())

    @pytest.mark.parametrize("training", [True, False])
    def test_to_linear_keeps_the_mode(self, training):
        assert self.make().train(training).to_linear().training == training

    @pytest.mark.parametrize("trained", ["weight", "bias"])
    def test_to_linear_keeps_requires_grad(self, trained):
        module = self.make().requires_grad_(False)
        for name, parameter in module.named_parameters():
            parameter.requires_grad_((name == "bias") == (trained == "bias"))
        linear = module.to_linear()
        flags = {name: p.requires_grad for name, p in linear.named_parameters()}
        assert flags == {"weight": trained == "weight", "bias": trained == "bias"}

    def test_repr(self):
        assert repr(self.make()) == f"{self.cls.__name__}({self.repr}, bias=True)"

    def test_repr_names_the_activation(self):
        text = f"{self.cls.__name__}({self.repr}, bias=False, activation='silu')"
        assert repr(self.make(bias=False, activation="silu")) == text

    def test_counts_are_those_of_format_and_bias(self):
        module = self.make()
        bias = Counts(OUT, OUT, 4 * OUT, 4 * OUT, OUT)
        assert module.counts() == module.format.counts() + bias

    # state

    def test_state_dict_names(self):
        assert set(self.make().state_dict()) == {*self.tensors, "bias"}

    @pytest.mark.parametrize("assign", [False, True])
    def test_state_dict_round_trip(self, assign):
        module, other = self.make(), self.make()
        other.load_state_dict(module.state_dict(), assign=assign)
        x = torch.randn(3, IN)
        assert torch.equal(module(x), other(x))
        assert all(torch.equal(a, b) for a, b in zip(*map(_tensors, (module, other)), strict=True))

    def test_state_dict_round_trip_from_meta(self):
        module, other = self.make(), self.cls(IN, OUT, **self.size, device="meta")
        other.load_state_dict(module.state_dict(), assign=True)
        x = torch.randn(3, IN)
        assert torch.equal(module(x), other(x))

    def test_safetensors_round_trip(self, tmp_path):
        module, other = self.make(), self.make()
        save_model(module, str(tmp_path / "module.safetensors"))
        assert load_model(other, tmp_path / "module.safetensors") == (set(), [])
        assert all(torch.equal(a, b) for a, b in zip(*map(_tensors, (module, other)), strict=True))

    def test_weights_only_round_trip(self, tmp_path):
        module, other = self.make(), self.make()
        torch.save(module.state_dict(), tmp_path / "module.pt")
        other.load_state_dict(torch.load(tmp_path / "module.pt", weights_only=True))
        assert all(torch.equal(a, b) for a, b in zip(*map(_tensors, (module, other)), strict=True))

    def test_refuses_tensors_of_another_size(self):
        module = self.make()
        before = copy.deepcopy(module.state_dict())
        wrong = {n: t[..., :1] for n, t in before.items()}
        with pytest.raises(RuntimeError, match="size mismatch"):
            module.load_state_dict(wrong)
        assert all(torch.equal(t, before[n]) for n, t in module.state_dict().items())

    def test_refuses_a_missing_tensor(self):
        module = self.make()
        for name in self.tensors:
            state = module.state_dict()
            del state[name]
            with pytest.raises(RuntimeError, match=name):
                module.load_state_dict(state)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_to_dtype(self, dtype, device):
        module = self.make(device=device).to(dtype)
        assert {p.dtype for p in module.parameters()} == {dtype}
        assert {b.dtype for b in module.buffers()} <= {torch.int32}
        assert module(torch.randn(2, IN, device=device, dtype=dtype)).dtype == dtype

    @pytest.mark.parametrize("cast", ["half", "bfloat16", "double"])
    def test_cast_rounds_the_weights_once(self, cast):
        module = self.make()
        other = getattr(copy.deepcopy(module), cast)()
        for got, want in zip(other.parameters(), module.parameters(), strict=True):
            assert torch.equal(got, getattr(want, cast)())

    def test_deepcopy_is_equal_and_apart(self):
        module = self.make(activation="gelu")
        other = copy.deepcopy(module)
        x = torch.randn(3, IN)
        want = module(x)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.zero_()
        assert torch.equal(other(x), want)

    # training

    def test_a_step_changes_parameters_and_no_index(self, device):
        module = self.make(device=device)
        before = copy.deepcopy(module.state_dict())
        optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
        module(torch.randn(9, IN, device=device)).square().mean().backward()
        optimizer.step()
        trained = {n for n, _ in module.named_parameters()}
        changed = {n for n, t in module.state_dict().items() if not torch.equal(t, before[n])}
        assert changed == trained

    def test_training_fits_a_module_of_its_own_format(self):
        torch.manual_seed(1)
        teacher, student = self.make().requires_grad_(False), self.make()
        if self.sparse:
            student.crow_indices, student.col_indices = teacher.crow_indices, teacher.col_indices
        optimizer = torch.optim.Adam(student.parameters(), lr=0.02)
        x = torch.randn(64, IN)
        losses = []
        for _ in range(150):
            loss = F.mse_loss(student(x), teacher(x))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.05 * losses[0]

    def test_frozen_module_records_no_gradient(self):
        assert not self.make().requires_grad_(False)(torch.randn(2, IN)).requires_grad

    # construction

    def test_meta_device_makes_no_data(self):
        module = self.cls(IN, OUT, **self.size, device="meta")
        assert all(t.is_meta for t in module.state_dict().values())
        assert module(torch.randn(2, IN, device="meta")).shape == (2, OUT)

    def test_meta_context_makes_no_data(self):
        with torch.device("meta"):
            module = self.cls(IN, OUT, **self.size)
        assert all(t.is_meta for t in module.state_dict().values())

    def test_device_and_dtype_arguments(self, device):
        module = self.cls(IN, OUT, **self.size, device=device, dtype=torch.bfloat16)
        assert {p.dtype for p in module.parameters()} == {torch.bfloat16}
        assert {t.device.type for t in module.state_dict().values()} == {device.type}

    def test_new_module_keeps_the_scale_of_its_input(self):
        wide = self.cls(512, 256, **self.size)
        y = wide(torch.randn(64, 512)).detach()
        assert 0.5 < float(y.std()) < 2

    def test_reset_makes_a_module_from_meta_a_new_one(self):
        torch.manual_seed(3)
        want = self.cls(IN, OUT, **self.size)
        module = self.cls(IN, OUT, **self.size, device="meta").to_empty(device="cpu")
        for tensor in module.state_dict().values():
            tensor.fill_(7)  # what memory may hold
        torch.manual_seed(3)
        module.reset_parameters()
        for name, tensor in want.state_dict().items():
            assert torch.equal(module.state_dict()[name], tensor), name

    def test_refuses_an_unknown_activation(self):
        with pytest.raises(ValueError, match=f"{self.cls.__name__}: activation 'mish'; expected"):
            self.make(activation="mish")

    def test_refuses_a_bias_of_another_size(self):
        module = self.make()
        with pytest.raises(ValueError, match=r"bias \(23,\); expected \(24,\)"):
            self.cls.from_format(module.format, torch.zeros(OUT - 1))

    def test_refuses_a_bias_of_another_dtype(self):
        module = self.make()
        with pytest.raises(TypeError, match=r"bias is torch\.float64.*expected torch\.float32"):
            self.cls.from_format(module.format, torch.zeros(OUT, dtype=torch.float64))

    def test_refuses_a_bias_on_another_device(self):
        module = self.make()
        with pytest.raises(TypeError, match="bias is .* on meta; expected .* on cpu"):
            self.cls.from_format(module.format, torch.zeros(OUT, device="meta"))


def _tensors(module: nn.Module) -> list[torch.Tensor]:
    return list(module.state_dict().values())
