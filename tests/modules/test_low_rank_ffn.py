"""The module `LowRankFFN`."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_model, save_model
from torch import nn

from lada_ops import LowRankFFN, LowRankLinear
from tests.ops.op_suite import DTYPES

IN, HIDDEN, OUT = 12, 30, 10
KEYS = {
    *("up.u", "up.v", "up.bias"),
    *("down.u", "down.v", "down.bias"),
    *("norm.weight", "norm.bias"),
}


@pytest.mark.parametrize("bias", [True, False], ids=["bias2", "no-bias2"])
def test_bias1_is_optional(bias, device):
    linear = {"device": device, "dtype": torch.float64}
    module = LowRankFFN(IN, HIDDEN, OUT, 4, 5, bias=False, **linear)
    if bias:
        module.down.bias = nn.Parameter(torch.randn(OUT, **linear))
    x = torch.randn(3, IN, **linear).requires_grad_()
    assert_is_its_parts(module, x)
    assert torch.autograd.gradcheck(module, x)


def make(**kwargs) -> LowRankFFN:
    """A module with random weights."""
    module = LowRankFFN(IN, HIDDEN, OUT, 4, 5, **kwargs)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


def assert_is_its_parts(module, x, residual=None):
    """The module's output is that of its children, one after another."""
    y = module.down(F.gelu(module.up(x)))
    y = y if residual is None else y + residual
    y = y if module.norm is None else module.norm(y)
    torch.testing.assert_close(module(x, residual), y)


class TestModule:
    @pytest.mark.parametrize("norm_eps", [None, 1e-12, 0.5])
    @pytest.mark.parametrize("residual", [True, False], ids=["residual", "no-residual"])
    def test_is_its_parts(self, residual, norm_eps, device):
        kind = {"device": device, "dtype": torch.float64}
        module, x = make(norm_eps=norm_eps, **kind), torch.randn(2, 3, IN, **kind)
        assert_is_its_parts(module, x, torch.randn(2, 3, OUT, **kind) if residual else None)

    def test_takes_the_activation(self):
        module, x = make(activation="relu", norm_eps=None), torch.randn(3, IN)
        torch.testing.assert_close(module(x), module.down(F.relu(module.up(x))))

    def test_every_parameter_is_trained(self, device):
        module = make(device=device)
        before = copy.deepcopy(module.state_dict())
        optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
        x, residual = torch.randn(9, IN, device=device), torch.randn(9, OUT, device=device)
        module(x, residual).pow(3).mean().backward()
        optimizer.step()
        assert not any(torch.equal(t, before[n]) for n, t in module.state_dict().items())

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_to_dtype(self, dtype, device):
        module = make(device=device).to(dtype)
        assert {p.dtype for p in module.parameters()} == {dtype}
        assert module(torch.randn(2, IN, device=device, dtype=dtype)).dtype == dtype

    def test_device_and_dtype_arguments(self, device):
        module = make(device=device, dtype=torch.bfloat16)
        assert {(p.dtype, p.device.type) for p in module.parameters()} == {
            (torch.bfloat16, device.type)
        }

    def test_meta_device_makes_no_data(self):
        module = LowRankFFN(IN, HIDDEN, OUT, 4, 5, device="meta")
        assert all(t.is_meta for t in module.state_dict().values())
        assert module(torch.randn(2, IN, device="meta")).shape == (2, OUT)

    def test_state_dict_names(self):
        assert set(make().state_dict()) == KEYS
        assert set(make(norm_eps=None).state_dict()) == {k for k in KEYS if "norm" not in k}

    def test_safetensors_round_trip(self, tmp_path):
        module, other, x = make(), make(), torch.randn(3, IN)
        save_model(module, str(tmp_path / "module.safetensors"))
        assert load_model(other, tmp_path / "module.safetensors") == (set(), [])
        assert torch.equal(module(x), other(x))

    def test_deepcopy_is_equal_and_apart(self):
        module, x = make(), torch.randn(3, IN)
        other, want = copy.deepcopy(module), module(x)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.zero_()
        assert torch.equal(other(x), want)

    def test_compiles_as_one_graph(self, device):
        module, x = make(device=device), torch.randn(3, IN, device=device)
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), module(x))

    def test_repr_names_the_activation(self):
        assert "activation='silu'" in repr(make(activation="silu"))

    def test_refuses_an_unknown_activation(self):
        with pytest.raises(ValueError, match="LowRankFFN: activation 'mish'; expected"):
            make(activation="mish")

    @pytest.mark.parametrize("ranks", [(0, 5), (13, 5), (4, 0), (4, 11)], ids=str)
    def test_refuses_a_rank_out_of_range(self, ranks):
        with pytest.raises(ValueError, match="rank .* expected 1 to 1[02]"):
            LowRankFFN(IN, HIDDEN, OUT, *ranks)


class TestFromLinears:
    def parts(self) -> tuple[Any, ...]:
        up, down = LowRankLinear(IN, HIDDEN, 4), LowRankLinear(HIDDEN, OUT, 5)
        return up, down, nn.LayerNorm(OUT, eps=1e-3)

    def test_holds_the_modules_it_is_given(self):
        parts = self.parts()
        module = LowRankFFN.from_linears(*parts)
        assert (module.up, module.down, module.norm) == parts

    def test_is_its_parts(self):
        assert_is_its_parts(LowRankFFN.from_linears(*self.parts()), torch.randn(3, IN))

    def test_norm_is_optional(self):
        up, down, _ = self.parts()
        module = LowRankFFN.from_linears(up, down, activation="silu")
        x = torch.randn(3, IN)
        torch.testing.assert_close(module(x), down(F.silu(up(x))))

    @pytest.mark.parametrize("training", [True, False])
    def test_keeps_the_mode(self, training):
        parts = [part.train(training) for part in self.parts()]
        module = LowRankFFN.from_linears(*parts)
        assert {m.training for m in module.modules()} == {training}

    def test_refuses_linears_that_do_not_meet(self):
        up, _, norm = self.parts()
        with pytest.raises(ValueError, match="LowRankFFN: down takes 12 features; expected 30"):
            LowRankFFN.from_linears(up, LowRankLinear(IN, OUT, 5), norm)

    @pytest.mark.parametrize("child", ["up", "down"])
    def test_refuses_a_second_activation(self, child):
        parts = dict(zip(("up", "down", "norm"), self.parts(), strict=True))
        parts[child].activation = "gelu"
        with pytest.raises(ValueError, match=f"LowRankFFN: {child} has activation 'gelu'; expect"):
            LowRankFFN.from_linears(**parts)

    def test_refuses_a_norm_over_other_features(self):
        up, down, _ = self.parts()
        with pytest.raises(ValueError, match=r"norm is over \(30,\); expected \(10,\)"):
            LowRankFFN.from_linears(up, down, nn.LayerNorm(HIDDEN))

    @pytest.mark.parametrize("without", ["elementwise_affine", "bias"])
    def test_refuses_a_norm_without_weight_or_bias(self, without):
        up, down, _ = self.parts()
        with pytest.raises(ValueError, match="norm has no weight or no bias; expected both"):
            LowRankFFN.from_linears(up, down, nn.LayerNorm(OUT, **{without: False}))
