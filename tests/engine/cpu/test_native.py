"""`NativeEngine` and `LinearPacker`, called without the forwards around them."""

import pytest
import torch

from lada_ops.engine.cpu import native
from lada_ops.engine.cpu.choice import Choice
from lada_ops.engine.cpu.native import LinearPacker, pack_encoder
from lada_ops.engine.find import SupportedEncoder, find_encoders
from lada_ops.engine.masks import UnsupportedCall
from tests.engine.models import dense

FP32 = torch.float32


def packed(name):
    """Engine and linears of a tiny dense model's encoder."""
    (encoder,) = find_encoders(dense(name)).values()
    assert isinstance(encoder, SupportedEncoder)
    return pack_encoder(encoder, FP32)


def hidden_states(rows=2, length=6, dtype=FP32):
    return torch.randn(rows, length, 32, generator=torch.Generator().manual_seed(0)).to(dtype)


def mask_of(*rows):
    return torch.tensor([[c == "1" for c in row] for row in rows])


class TestEngine:
    def test_hidden_positions_come_out_as_0_and_change_no_others(self):
        engine, _ = packed("bert")
        x, mask = hidden_states(), mask_of("111100", "010111")
        y = engine(x, mask)
        assert not y[~mask].any()
        alone = [engine(row[visible][None])[0] for row, visible in zip(x, mask, strict=True)]
        torch.testing.assert_close(y[mask], torch.cat(alone))

    def test_a_mask_that_hides_nothing_is_no_mask(self):
        engine, _ = packed("bert")
        x = hidden_states()
        torch.testing.assert_close(engine(x, mask_of("111111", "111111")), engine(x))

    @pytest.mark.parametrize("mask", [None, mask_of("111111", "111100")], ids=["none", "padding"])
    def test_x_is_unchanged(self, mask):
        engine, _ = packed("bert")
        x = hidden_states()
        engine(x, mask)
        assert x.equal(hidden_states())

    @pytest.mark.parametrize("mask", [None, mask_of("111111", "111100")], ids=["none", "padding"])
    def test_the_output_has_the_dtype_of_x(self, mask):
        engine, _ = packed("bert")
        assert engine(hidden_states(dtype=torch.float64), mask).dtype == torch.float64

    def test_layers_one_after_another_are_the_whole(self):
        engine, _ = packed("bert")
        x, mask = hidden_states(), mask_of("111111", "111100")
        first = engine(x, mask, slice(0, 1))
        assert not first.equal(engine(x, mask))
        torch.testing.assert_close(engine(first, mask, slice(1, 2)), engine(x, mask))

    @pytest.mark.parametrize("name", ["mpnet", "modernbert"])
    def test_gaps_are_refused_where_positions_matter(self, name):
        engine, _ = packed(name)
        with pytest.raises(UnsupportedCall):
            engine(hidden_states(), mask_of("111111", "110111"))

    @pytest.mark.parametrize("name", ["mpnet", "modernbert"])
    def test_lengths_beyond_the_positions_are_refused(self, name):
        engine, _ = packed(name)
        engine(hidden_states(1, 40))
        with pytest.raises(UnsupportedCall):
            engine(hidden_states(1, 41))

    def test_the_watch_is_checked_in_every_call(self, monkeypatch):
        engine, _ = packed("bert")

        def changed():
            raise UnsupportedCall

        monkeypatch.setattr(engine.watch, "check", changed)
        with pytest.raises(UnsupportedCall):
            engine(hidden_states())

    def test_it_holds_no_memory_of_the_model(self):
        model = dense("bert")
        (encoder,) = find_encoders(model).values()
        assert isinstance(encoder, SupportedEncoder)
        engine, _ = pack_encoder(encoder, FP32)
        want = engine(hidden_states())
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(torch.nan)
        torch.testing.assert_close(engine(hidden_states()), want, rtol=0, atol=0)


class TestLinearPacker:
    def test_every_linear_is_a_part_of_the_merged_weight(self):
        sources = {name: torch.nn.Linear(32, 32 * i) for i, name in enumerate("abc", 1)}
        packer, x = LinearPacker(), torch.randn(5, 32)
        merged = packer.pack(sources, FP32)
        assert merged.out_features == 32 * 6
        with torch.no_grad():
            for name, linear in sources.items():
                torch.testing.assert_close(packer.modules[name](x), linear(x))

    def test_the_chosen_weight_and_its_reason_are_kept(self, monkeypatch):
        monkeypatch.setattr(native, "choose", lambda *_: Choice(True, "faster"))
        packer = LinearPacker()
        packer.pack({"a": torch.nn.Linear(32, 32), "b": torch.nn.Linear(32, 64)}, FP32)
        assert packer.reasons == {"a": "faster", "b": "faster"}
        assert all(", dense" in repr(module) for module in packer.modules.values())


def test_each_layer_has_all_its_linears():
    _, packers = packed("bert")
    assert [len(packer.modules) for packer in packers] == [6, 6]
