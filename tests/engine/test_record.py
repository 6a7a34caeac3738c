"""State of an optimized model: memory, saving, loading, copies, and `restore`."""

import copy
import gc
import pickle
import types

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModel

import lada_ops
from lada_ops import LowRankLinear, optimize, restore
from lada_ops.compression.plan import METHODS
from lada_ops.compression.pretrained import compression_of
from lada_ops.engine import optimize as optimize_module
from lada_ops.engine.bypassed import copied_module
from lada_ops.modules.packed_linear import PackedLinear
from tests.engine.models import compress, compressed, fused, visible
from tests.tiny_encoders import batch, outputs, tiny_bert

SKIPPED = type, types.ModuleType, types.FunctionType, types.CodeType


@pytest.fixture
def bert():
    return compress(tiny_bert())


def reachable_bytes(root):
    """Bytes of all tensors and arrays reachable from `root`, shared memory counted once."""
    storages, visited, todo = {}, set(), [root]
    while todo:
        thing = todo.pop()
        if id(thing) in visited or isinstance(thing, SKIPPED):
            continue
        visited.add(id(thing))
        if isinstance(thing, torch.Tensor) and not thing.is_meta:
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        if isinstance(thing, np.ndarray):
            while isinstance(thing.base, np.ndarray):
                thing = thing.base
            if thing.nbytes:
                storages[thing.ctypes.data] = thing.nbytes
        todo += gc.get_referents(thing)
    return sum(storages.values())


@pytest.mark.parametrize("method", [None, *METHODS])
def test_memory_is_near_that_before(method):
    model = tiny_bert(hidden_size=128, intermediate_size=512)
    if method is not None:
        lada_ops.compress(model, 4, method, block=(32, 16), quiet=True)
    before = reachable_bytes(model)
    padding = sum(  # ranks are multiples of 16, and the rest of them lies in both factors
        4 * (-m.rank % 16) * (m.in_features + m.out_features)
        for m in model.modules()
        if hasattr(m, "rank")
    )
    assert reachable_bytes(optimize(model)) < 1.1 * before + padding


def test_queries_keys_and_values_share_their_weights(bert):
    attention = optimize(bert).encoder.layer[0].attention.self
    weights = {
        part.packed.sparse_u.values.ctypes.data
        for part in (attention.query, attention.key, attention.value)
    }
    assert weights == {
        bert.encoder.forward.engine.encoder.layers[0].qkv.sparse_u.values.ctypes.data
    }


@pytest.mark.parametrize("method", METHODS)
def test_state_dict_is_as_before(method):
    model = compressed("bert", method)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    after = optimize(model).state_dict()
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize("method", METHODS)
def test_a_saved_model_loads_as_the_compressed_model(method, tmp_path):
    model = compress(tiny_bert(), method)
    want = outputs(model)
    optimize(model).save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(outputs(loaded), want, rtol=0, atol=0)


def test_the_compression_record_is_saved(bert, tmp_path):
    want = compression_of(bert)
    optimize(bert).save_pretrained(tmp_path)
    assert want is not None
    assert compression_of(AutoModel.from_pretrained(tmp_path)) == want


def test_saved_from_bf16_weights_are_rounded(bert, tmp_path):
    linear = bert.encoder.layer[0].output.dense
    u, bias = linear.u.detach().bfloat16().float(), linear.bias.detach().clone()
    optimize(bert, torch.bfloat16).save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path).encoder.layer[0].output.dense
    assert isinstance(loaded, LowRankLinear)
    torch.testing.assert_close((loaded.u, loaded.bias), (u, bias), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["", "encoder", "encoder.layer.0.attention.self.query"])
def test_loading_is_refused_before_anything_changes(bert, name):
    before = {name: t.clone() for name, t in bert.state_dict().items()}
    module = optimize(bert).get_submodule(name)
    other = {name: t + 1 for name, t in module.state_dict().items()}
    with pytest.raises(RuntimeError, match="optimized for inference; load its weights first"):
        module.load_state_dict(other)
    torch.testing.assert_close(bert.state_dict(), before, rtol=0, atol=0)


def test_other_modules_can_be_loaded(bert):
    embeddings = optimize(bert).embeddings
    other = {name: t + 1 for name, t in embeddings.state_dict().items()}
    embeddings.load_state_dict(other)
    torch.testing.assert_close(embeddings.state_dict(), other, rtol=0, atol=0)


def pickled(model):
    return pickle.loads(pickle.dumps(model))


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
def test_copies_compute_the_same(bert, copied):
    want = outputs(optimize(bert))
    other = copied(bert)
    del bert
    torch.testing.assert_close(outputs(other), want, rtol=0, atol=0)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
def test_copies_share_no_memory_and_take_no_more(bert, copied):
    other = copied(optimize(bert))
    one, two = reachable_bytes(bert), reachable_bytes(other)
    assert two < 1.05 * one  # pickled, the biases that are views of another are no longer
    assert reachable_bytes([bert, other]) == one + two


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
def test_copies_refuse_to_load_too(bert, copied):
    other = copied(optimize(bert))
    before = other.embeddings.word_embeddings.weight.clone()
    state = {name: t + 1 for name, t in other.state_dict().items()}
    with pytest.raises(RuntimeError, match="optimized for inference"):
        other.load_state_dict(state)
    assert other.embeddings.word_embeddings.weight.equal(before)


def test_a_partly_compressed_model_keeps_dense_linears(tmp_path):
    model = compress(tiny_bert(), layers=r"(key|intermediate\.dense)$")
    want = outputs(model)
    torch.testing.assert_close(outputs(optimize(model))[:, 0], want[:, 0], rtol=1e-4, atol=1e-5)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    attention = loaded.encoder.layer[1].attention.self
    assert (type(attention.key), type(attention.query)) == (LowRankLinear, nn.Linear)
    torch.testing.assert_close(outputs(loaded), want, rtol=0, atol=0)


def test_an_error_while_copying_leaves_the_model(bert, monkeypatch):
    before = [id(module) for module in bert.modules()]
    copied = []

    def copy_some(module, with_hooks):
        copied.append(module)
        if len(copied) > 4:
            raise MemoryError
        return copied_module(module, with_hooks)

    monkeypatch.setattr(optimize_module, "copied_module", copy_some)
    with pytest.raises(MemoryError):
        optimize(bert)
    assert [id(module) for module in bert.modules()] == before


def test_no_original_linear_is_left(bert):
    optimize(bert)
    kept = {type(m) for m in bert.encoder.modules()} & {nn.Linear, LowRankLinear}
    assert not kept
    assert any(isinstance(m, PackedLinear) for m in bert.encoder.modules())


class TestRestore:
    @pytest.mark.parametrize("method", [None, *METHODS])
    def test_gives_back_the_model_before(self, method):
        model = tiny_bert() if method is None else compress(tiny_bert(), method)
        before = outputs(model)
        state = {name: t.clone() for name, t in model.state_dict().items()}
        types = {name: type(module) for name, module in model.named_modules()}
        model.train().embeddings.requires_grad_(False)
        flags = {name: p.requires_grad for name, p in model.named_parameters()}
        replaced = restore(optimize(model))
        assert len(replaced) == 12
        assert {name: type(module) for name, module in model.named_modules()} == types
        assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
        assert all(module.training for module in model.modules())
        torch.testing.assert_close(dict(model.state_dict()), state, rtol=0, atol=0)
        torch.testing.assert_close(outputs(model.eval()), before, rtol=0, atol=0)

    def test_from_bf16_only_weights_are_rounded(self, bert):
        linear = bert.encoder.layer[0].output.dense
        u, bias = linear.u.detach().bfloat16().float(), linear.bias.detach().clone()
        restore(optimize(bert, torch.bfloat16))
        linear = bert.encoder.layer[0].output.dense
        torch.testing.assert_close((linear.u.detach(), linear.bias.detach()), (u, bias))

    def test_the_next_one_changes_nothing(self, bert):
        restore(optimize(bert))
        assert restore(bert) == []
        assert sum(isinstance(m, LowRankLinear) for m in bert.modules()) == 12

    def test_it_trains_loads_and_is_optimized_again(self, bert):
        restore(optimize(bert))
        bert(**batch())[0].sum().backward()
        bert.load_state_dict({name: t + 1e-3 for name, t in bert.state_dict().items()})
        want = visible(outputs(bert))
        torch.testing.assert_close(visible(outputs(optimize(bert))), want, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
    def test_of_a_copy(self, bert, copied):
        want = outputs(bert)
        other = copied(optimize(bert))
        restore(other)
        torch.testing.assert_close(outputs(other), want, rtol=0, atol=0)
        other.load_state_dict(other.state_dict())
        with pytest.raises(RuntimeError, match="optimized for inference"):
            bert.load_state_dict(bert.state_dict())

    @pytest.mark.parametrize("engine", [optimize, fused])
    def test_tied_parameters_are_tied_again(self, engine):
        model = tiny_bert()
        first, second = model.encoder.layer
        second.output.dense.weight = first.output.dense.weight
        second.intermediate = first.intermediate
        model.lm_head = nn.Linear(32, 32)
        model.lm_head.weight = first.attention.output.dense.weight
        want = outputs(model)
        restore(engine(model))
        first, second = model.encoder.layer
        assert second.output.dense.weight is first.output.dense.weight
        assert second.intermediate.dense.weight is first.intermediate.dense.weight
        assert model.lm_head.weight is first.attention.output.dense.weight
        torch.testing.assert_close(outputs(model), want, rtol=0, atol=0)

    def test_a_parameter_tied_to_a_removed_layer_comes_back(self):
        model = tiny_bert()
        first, second = model.encoder.layer
        second.output.dense.weight = first.output.dense.weight
        want = second.output.dense.weight.detach().clone()
        del optimize(model).encoder.layer[0]
        restore(model)
        assert model.encoder.layer[0].output.dense.weight.equal(want)

    def test_single_linears(self):
        model = nn.Sequential(LowRankLinear(24, 40, 6, activation="gelu"), nn.Linear(40, 3)).eval()
        x = torch.randn(5, 24)
        want = model(x)
        restore(optimize(model))
        assert [type(module) for module in model] == [LowRankLinear, nn.Linear]
        torch.testing.assert_close(model(x), want, rtol=0, atol=0)
