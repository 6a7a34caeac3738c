"""What every module with a block-sparse part must do beside `ModuleSuite`."""

import copy

import pytest
import torch
from safetensors.torch import load_file, load_model, save_model
from torch import nn

from lada_ops import Bsr
from tests.module_suite import IN, OUT, ModuleSuite, is_panel_major

WRONG_INDICES = {  # of 2 x 3 = 6 of the 3 x 10 blocks: name -> how to spoil it
    "outside": ("col_indices", lambda t: t.fill_(10)),
    "negative": ("col_indices", lambda t: t.fill_(-1)),
    "twice": ("col_indices", lambda t: t.fill_(0)),
    "descending": ("col_indices", lambda t: t.copy_(t.flip(0))),
    "too many": ("crow_indices", lambda t: t[1:].add_(1)),
    "first not 0": ("crow_indices", lambda t: t[0].fill_(1)),
    "falling": ("crow_indices", lambda t: t[1].fill_(9999)),
}


class BsrModuleSuite(ModuleSuite):
    """The indices, their checks, and the layout of the values."""

    @pytest.mark.parametrize("width", [IN - 4, IN + 4])
    def test_refuses_an_x_of_another_width(self, width):
        with pytest.raises(ValueError, match=rf"x \(2, {width}\); expected \(\.\.\., {IN}\)"):
            self.make()(torch.randn(2, width))

    @pytest.mark.parametrize("assign", [False, True])
    @pytest.mark.parametrize("wrong", WRONG_INDICES)
    def test_refuses_wrong_indices_before_anything_changes(self, wrong, assign):
        module = self.make()
        before = copy.deepcopy(module.state_dict())
        state = {n: t.clone().add_(1) if n == "values" else t.clone() for n, t in before.items()}
        name, spoil = WRONG_INDICES[wrong]
        spoil(state[name])
        with pytest.raises(ValueError, match=name):
            module.load_state_dict(state, assign=assign)
        assert all(torch.equal(t, before[n]) for n, t in module.state_dict().items())

    @pytest.mark.parametrize("wrong", WRONG_INDICES)
    def test_refuses_wrong_indices_that_come_alone(self, wrong):
        module = self.make()
        before = copy.deepcopy(module.state_dict())
        name, spoil = WRONG_INDICES[wrong]
        part = {name: before[name].clone()}
        spoil(part[name])
        with pytest.raises(ValueError, match=name):
            module.load_state_dict(part, strict=False)
        assert all(torch.equal(t, before[n]) for n, t in module.state_dict().items())

    def test_refuses_indices_of_floats(self):
        module = self.make()
        state = module.state_dict()
        state["col_indices"] = state["col_indices"].float()
        with pytest.raises(TypeError, match=r"col_indices is torch\.float32"):
            module.load_state_dict(state)

    def test_indices_of_int64_load_as_int32(self):
        module, other = self.make(), self.make()
        state = {
            n: t if t.is_floating_point() else t.long() for n, t in module.state_dict().items()
        }
        other.load_state_dict(state)
        assert {b.dtype for b in other.buffers()} == {torch.int32}
        assert torch.equal(other(torch.ones(1, IN)), module(torch.ones(1, IN)))

    def test_assigned_indices_of_int64_run(self):
        module, other = self.make(), self.make()
        state = {
            n: t if t.is_floating_point() else t.long() for n, t in module.state_dict().items()
        }
        other.load_state_dict(state, assign=True)
        assert torch.equal(other(torch.ones(1, IN)), module(torch.ones(1, IN)))

    def test_wrong_indices_set_by_hand_are_found_when_read(self):
        module = self.make()
        module.col_indices.fill_(99)
        with pytest.raises(ValueError, match="col_indices holds 99"):
            _ = module.format

    def test_indices_are_no_parameters(self):
        names = {n for n, _ in self.make().named_parameters()}
        assert not names & {"crow_indices", "col_indices"}

    @pytest.mark.parametrize("density", [0, 1e-6, 0.1, 1 / 3, 0.5, 0.999, 1])
    def test_new_pattern_is_valid_and_as_dense_as_asked(self, density):
        bsr = self.cls(IN, OUT, **{**self.size, "density": density}).bsr
        assert bsr.nnz == round(density * 3 * 10)

    def test_new_pattern_is_spread_evenly(self):
        bsr = self.cls(IN, OUT, **{**self.size, "density": 0.5}).bsr
        assert bsr.crow_indices.diff().tolist() == [5, 5, 5]

    def test_values_are_panel_major(self, tmp_path):
        module = self.cls.from_linear(nn.Linear(IN, OUT), **self.size)
        loaded, assigned, filed, from_rows = (self.make() for _ in range(4))
        loaded.load_state_dict(module.state_dict())
        assigned.load_state_dict(module.state_dict(), assign=True)
        save_model(module, str(tmp_path / "module.safetensors"))
        load_model(filed, tmp_path / "module.safetensors")
        row_major = load_file(tmp_path / "module.safetensors")
        from_rows.load_state_dict(row_major, assign=True)
        made = {
            "new": self.cls(IN, OUT, **self.size),
            "on meta": self.cls(IN, OUT, **self.size, device="meta"),
            "from_linear": module,
            "from_format": self.cls.from_format(module.format),
            "copied": copy.deepcopy(module),
            "half": copy.deepcopy(module).half(),
            "to": copy.deepcopy(module).to(torch.float64),
            "loaded": loaded,
            "assigned": assigned,
            "filed": filed,
            "assigned row-major": from_rows,
        }
        assert not is_panel_major(row_major["values"])
        assert {name for name, m in made.items() if not is_panel_major(m.values)} == set()

    def test_row_major_values_are_taken_too(self):
        module = self.make(dtype=torch.float64)
        want = module(torch.ones(2, IN, dtype=torch.float64))
        module.values = nn.Parameter(module.values.detach().contiguous())
        assert not is_panel_major(module.values)
        torch.testing.assert_close(module(torch.ones(2, IN, dtype=torch.float64)), want)

    def test_bsr_shares_the_values(self):
        module = self.make()
        assert isinstance(module.bsr, Bsr)
        assert module.bsr.values.data_ptr() == module.values.data_ptr()

    @pytest.mark.parametrize("density", [0, 1])
    def test_no_blocks_and_all_blocks(self, density, device):
        linear = nn.Linear(IN, OUT, device=device)
        module = self.cls.from_linear(linear, **{**self.size, "density": density})
        x = torch.randn(2, IN, device=device)
        torch.testing.assert_close(module(x), module.to_linear()(x), rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("density", [-0.1, 1.1, float("nan")])
    def test_refuses_a_density_out_of_range(self, density):
        with pytest.raises(ValueError, match="density .*; expected 0 to 1"):
            self.cls(IN, OUT, **{**self.size, "density": density})

    @pytest.mark.parametrize("block", [(7, 4), (8, 3), (0, 4), (48, 4), (-8, 4)])
    def test_refuses_a_block_that_does_not_divide(self, block):
        with pytest.raises(ValueError, match=f"{self.cls.__name__}: block .* expected|divide"):
            self.cls(IN, OUT, **{**self.size, "block": block})
