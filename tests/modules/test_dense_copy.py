"""`DenseCopy`, and which modules keep one; a stand-in plays the input on a GPU."""

import copy
import pickle
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import lada_ops
from lada_kernels import tuning
from lada_kernels.variants import Variant
from lada_ops import BlockSparseLinear, LowRankLinear, SparseLowRankLinear
from lada_ops.modules import compressed_linear
from lada_ops.modules.dense_copy import DenseCopy

ON_GPU: Any = SimpleNamespace(is_cuda=True, dtype=torch.float32, get_device=lambda: 0)
ON_CPU = torch.zeros(1)


@pytest.fixture(autouse=True)
def _no_graph_is_captured_and_no_user_has_tables(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(compressed_linear, "use_user_tables", lambda: None)


@pytest.fixture
def module():
    return LowRankLinear(6, 4, 2).requires_grad_(False)


@pytest.fixture
def measured(monkeypatch):
    """Function that sets the variants that a tuned table finds fastest, by token count."""

    def measured(*variants):
        asked = iter(variants)
        variant = lambda *key: Variant(next(asked, "one_launch"))  # noqa: E731
        monkeypatch.setattr(tuning, "fastest", variant)
        tuning.dense_is_ever_fastest.cache_clear()

    yield measured
    tuning.dense_is_ever_fastest.cache_clear()


class TestDenseCopy:
    def test_is_computed_once(self):
        computed, tensors = [], [torch.ones(2)]
        kept = DenseCopy()
        for _ in range(3):
            kept.get(tensors, lambda: computed.append(1) or tensors[0] * 2)
        assert len(computed) == 1

    @pytest.mark.parametrize(
        "change",
        [
            lambda t: t.add_(1),
            lambda t: t.set_(torch.zeros(2)),
            lambda t: setattr(t, "data", torch.zeros(2)),
        ],
        ids=["in place", "set", "data"],
    )
    def test_is_recomputed_after_a_tensor_has_changed(self, change):
        t, kept = torch.ones(2), DenseCopy()
        kept.get([t], t.clone)
        change(t)
        assert torch.equal(kept.get([t], t.clone), t)

    def test_is_recomputed_for_a_new_tensor_at_the_same_address(self):
        memory, kept = bytearray(8), DenseCopy()
        first = torch.frombuffer(memory, dtype=torch.float32)
        kept.get([first], first.clone)
        memory[:4] = bytes(range(4))  # as the allocator would reuse it: no version tells
        second = torch.frombuffer(memory, dtype=torch.float32)
        assert torch.equal(kept.get([second], second.clone), second)

    def test_works_on_inference_tensors(self):
        with torch.inference_mode():
            t = torch.ones(2)
        assert torch.equal(DenseCopy().get([t], t.clone), t)

    @pytest.mark.parametrize(
        "again",
        [copy.deepcopy, lambda kept: pickle.loads(pickle.dumps(kept))],
        ids=["copy", "pickle"],
    )
    def test_copies_start_without_it(self, again):
        kept = DenseCopy()
        kept.get([torch.ones(2)], lambda: torch.ones(2))
        assert kept.nbytes == 8
        assert again(kept).nbytes == 0


class TestKeepDense:
    def test_nothing_is_kept_on_the_cpu(self, module):
        module.keep_dense = True
        module(torch.randn(3, 6))
        assert module.kept_bytes == 0

    def test_true_keeps_the_weight(self, module):
        module.keep_dense = True
        assert torch.equal(module.dense_for(ON_GPU), module.u @ module.v)
        assert module.kept_bytes == 4 * 6 * 4

    @pytest.mark.parametrize(
        ("make", "names"),
        [
            (
                lambda: BlockSparseLinear(32, 32, (16, 16), 0.5),
                ("block_sparse_linear", "16x16-d50"),
            ),
            (
                lambda: SparseLowRankLinear(32, 32, 4, (16, 16), 0.5),
                ("sparse_low_rank_linear", "r32+16x16-d50"),
            ),
        ],
        ids=["block-sparse", "sparse-low-rank"],
    )
    def test_block_sparse_weights_are_kept(self, make, names, monkeypatch):
        asked = []
        variant = Variant("dense")
        monkeypatch.setattr(tuning, "fastest", lambda *key: asked.append(key) or variant)
        tuning.dense_is_ever_fastest.cache_clear()
        module = make().requires_grad_(False)
        assert torch.equal(module.dense_for(ON_GPU), module.format.to_dense())
        assert (asked[0][0], asked[0][4]) == names
        tuning.dense_is_ever_fastest.cache_clear()

    def test_follows_the_indices(self):
        module = BlockSparseLinear(32, 16, (16, 16), 0.5).requires_grad_(False)
        module.keep_dense = True
        module.dense_for(ON_GPU)
        module.load_state_dict({"col_indices": 1 - module.col_indices}, strict=False)
        after: Any = module.dense_for(ON_GPU)
        assert torch.equal(after, module.format.to_dense())

    def test_false_keeps_nothing(self, module):
        module.keep_dense = False
        assert module.dense_for(ON_GPU) is None

    def test_auto_keeps_it_where_a_table_found_it_fastest(self, module, measured):
        measured("one_launch", "two_launches", "dense")
        assert module.dense_for(ON_GPU) is not None

    def test_auto_keeps_nothing_where_it_never_was(self, module, measured):
        measured("one_launch", "two_launches")
        assert module.dense_for(ON_GPU) is None

    def test_auto_keeps_nothing_where_nothing_is_measured(self, module, monkeypatch):
        monkeypatch.setattr(tuning, "fastest", lambda *key: None)
        tuning.dense_is_ever_fastest.cache_clear()
        assert module.dense_for(ON_GPU) is None
        tuning.dense_is_ever_fastest.cache_clear()

    def test_training_frees_it(self, module):
        module.keep_dense = True
        module.dense_for(ON_GPU)
        module.requires_grad_(True)
        assert module.dense_for(ON_GPU) is None
        assert module.kept_bytes == 0

    def test_no_grad_keeps_it_for_trainable_factors(self, module):
        module.keep_dense = True
        module.requires_grad_(True)
        with torch.no_grad():
            assert module.dense_for(ON_GPU) is not None

    def test_autocast_gets_none(self, module, monkeypatch):
        module.keep_dense = True
        monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: device == "cuda")
        assert module.dense_for(ON_GPU) is None

    def test_a_graph_gets_none(self, module, monkeypatch):
        module.keep_dense = True
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        assert module.dense_for(ON_GPU) is None

    def test_auto_asks_the_tables_of_the_user(self, module, monkeypatch):
        asked = []
        monkeypatch.setattr(compressed_linear, "use_user_tables", lambda: asked.append("user"))
        monkeypatch.setattr(tuning, "dense_is_ever_fastest", lambda *key: asked.append("table"))
        module.dense_for(ON_GPU)
        assert asked == ["user", "table"]

    def test_follows_the_factors(self, module):
        module.keep_dense = True
        before = module.dense_for(ON_GPU)
        module.load_state_dict({n: t + 1 for n, t in module.state_dict().items()})
        after = module.dense_for(ON_GPU)
        assert torch.equal(after, module.u @ module.v)
        assert not torch.equal(after, before)

    def test_is_no_part_of_the_state(self, module):
        keys = list(module.state_dict())
        module.keep_dense = True
        module.dense_for(ON_GPU)
        assert list(module.state_dict()) == keys

    def test_is_set_on_a_whole_model(self, module):
        other = copy.deepcopy(module)
        model = nn.Sequential(module, nn.Linear(2, 2), nn.Sequential(other))
        assert lada_ops.keep_dense(model, True) is model
        assert module.keep_dense is other.keep_dense is True

    def test_setting_it_frees_what_was_kept(self, module):
        module.keep_dense = True
        module.dense_for(ON_GPU)
        lada_ops.keep_dense(module, False)
        assert module.kept_bytes == 0

    @pytest.mark.parametrize("keep", [None, "yes", 2])
    def test_refuses_anything_else(self, module, keep):
        with pytest.raises(
            ValueError, match=f"keep_dense {keep!r}; expected True, False or 'auto'"
        ):
            lada_ops.keep_dense(module, keep)
        assert module.keep_dense == "auto"
