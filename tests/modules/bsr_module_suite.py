"""Suite of tests for modules with a block-sparse part, beside those of `ModuleSuite`."""

import copy
import itertools
import pickle
import sys
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, load_model, save_model
from torch import nn

from lada_ops import Bsr
from tests.modules.module_suite import IN, OUT, ModuleSuite, is_panel_major

WRONG_INDICES = {  # name -> tensor, and a change that makes it invalid
    "outside": ("col_indices", lambda t: t.fill_(10)),
    "negative": ("col_indices", lambda t: t.fill_(-1)),
    "twice": ("col_indices", lambda t: t.fill_(0)),
    "descending": ("col_indices", lambda t: t.copy_(t.flip(0))),
    "too many": ("crow_indices", lambda t: t[1:].add_(1)),
    "first not 0": ("crow_indices", lambda t: t[0].fill_(1)),
    "falling": ("crow_indices", lambda t: t[1].fill_(9999)),
}


def set_rows(module, counts):
    """`module` with the first `counts` blocks in each block row."""
    if module.values.is_meta:
        return module
    module.crow_indices = torch.tensor([0, *itertools.accumulate(counts)], dtype=torch.int32)
    cols = [col for count in counts for col in range(count)]
    module.col_indices = torch.tensor(cols, dtype=torch.int32)
    module.values = nn.Parameter(torch.randn(len(cols), *module.values.shape[1:]))
    module.update_order()
    return module


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
    def test_refuses_wrong_indices_loaded_alone(self, wrong):
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

    # packs and the order of the block rows

    def packed(self, **kwargs) -> Any:
        """A module of 4 x 8 blocks of 32 x 16: rows of 8, 4, 0 and 4 blocks."""
        module = self.cls(128, 128, **{**self.size, "block": (32, 16), "density": 0.5}, **kwargs)
        return set_rows(module, [8, 4, 0, 4])

    def test_order_is_by_load(self):
        assert self.packed().order.tolist() == [0, 1, 3, 2]

    def test_new_module_has_whole_packs(self):
        module = self.cls(128, 128, **{**self.size, "block": (32, 16), "density": 0.375})
        assert module.crow_indices.diff().tolist() == [4, 4, 4, 0]
        assert module.order.tolist() == [0, 1, 2, 3]

    def test_reset_orders_the_block_rows(self):
        module = self.packed()
        module.reset_parameters()
        assert module.crow_indices.diff().tolist() == [4, 4, 4, 4]
        assert module.order.tolist() == [0, 1, 2, 3]

    def test_columns_of_no_whole_packs_have_no_order(self):
        module = self.cls(96, 128, **{**self.size, "block": (32, 16), "density": 0.5})
        assert module.order is None

    def test_order_is_a_buffer_that_no_state_dict_has(self):
        module = self.packed()
        assert "order" in dict(module.named_buffers())
        assert "order" not in module.state_dict()

    def test_order_moves_with_the_module(self, device):
        module = self.packed().to(device).half()
        assert (module.order.device.type, module.order.dtype) == (device.type, torch.int32)

    def test_order_survives_copies_and_pickles(self):
        module = self.packed()
        for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            assert other.order.tolist() == [0, 1, 3, 2]

    @pytest.mark.parametrize("assign", [False, True])
    def test_order_follows_what_is_loaded(self, assign):
        module, other = self.packed(), set_rows(self.packed(), [0, 4, 4, 8])
        other.load_state_dict(module.state_dict(), assign=assign)
        assert other.order.tolist() == [0, 1, 3, 2]

    def test_order_follows_indices_loaded_alone(self):
        module, other = self.packed(), set_rows(self.packed(), [0, 4, 4, 8])
        part = {n: t for n, t in module.state_dict().items() if "indices" in n}
        other.load_state_dict(part, strict=False)
        assert other.order.tolist() == [0, 1, 3, 2]

    def test_order_stays_when_no_index_is_loaded(self):
        module = self.packed()
        module.load_state_dict({"bias": torch.ones(128)}, strict=False)
        assert module.order.tolist() == [0, 1, 3, 2]

    @pytest.mark.parametrize("assign", [False, True])
    def test_order_is_none_once_packs_are_not_whole(self, assign):
        module, other = self.packed(), set_rows(self.packed(), [7, 5, 0, 4])
        module.load_state_dict(other.state_dict(), assign=assign)
        assert module.order is None

    def test_order_of_a_module_on_meta_is_none(self):
        assert self.packed(device="meta").order is None

    def test_order_follows_tensors_loaded_into_a_module_on_meta(self):
        module, other = self.packed(), self.packed(device="meta")
        other.load_state_dict(module.state_dict(), assign=True)
        assert other.order.tolist() == [0, 1, 3, 2]

    def test_values_alone_load_into_a_module_on_meta(self):
        module, other = self.packed(), self.packed(device="meta")
        other.load_state_dict({"values": module.values}, strict=False, assign=True)
        assert other.order is None

    def test_from_linear_keeps_whole_packs(self):
        size = {**self.size, "block": (32, 16), "density": 0.4}
        module = self.cls.from_linear(nn.Linear(128, 128), **size)
        assert module.values.shape[0] == 12
        assert module.order is not None

    def test_from_format_pads_packs(self):
        module = set_rows(self.packed(), [7, 5, 0, 3])
        padded = self.cls.from_format(module.format, module.bias)
        assert padded.crow_indices.diff().tolist() == [8, 8, 0, 4]
        assert padded.order.tolist() == [0, 1, 3, 2]
        assert torch.equal(padded.to_linear().weight, module.to_linear().weight)

    def test_a_padded_module_loads_by_its_density(self):
        padded = self.cls.from_format(set_rows(self.packed(), [7, 5, 0, 3]).format)
        size = {**self.size, "block": (32, 16), "density": padded.bsr.density}
        other = self.cls(128, 128, **size, bias=False)
        other.load_state_dict(padded.state_dict())
        assert torch.equal(other(torch.ones(1, 128)), padded(torch.ones(1, 128)))

    @pytest.mark.parametrize("counts", [[8, 4, 0, 4], [7, 5, 0, 4]], ids=["whole", "not whole"])
    def test_op_is_given_the_order(self, counts, monkeypatch):
        module = set_rows(self.packed(), counts)
        given = {}
        op = self.cls.__module__.rpartition(".")[2]
        monkeypatch.setattr(
            sys.modules[self.cls.__module__], op, lambda *_, **kwargs: given.update(kwargs)
        )
        module(torch.ones(1, 128))
        assert given["order"] is module.order

    @pytest.mark.parametrize("counts", [[8, 4, 0, 4], [7, 5, 0, 4]], ids=["whole", "not whole"])
    def test_compiles_with_and_without_an_order(self, counts):
        module = set_rows(self.packed(), counts)
        x = torch.randn(3, 128)
        compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), module(x))

    def test_update_order(self):
        module = self.packed()
        module.crow_indices = torch.tensor([0, 4, 12, 16, 16], dtype=torch.int32)
        module.col_indices = torch.tensor([*range(4), *range(8), *range(4)], dtype=torch.int32)
        module.update_order()
        assert module.order.tolist() == [1, 0, 2, 3]

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
