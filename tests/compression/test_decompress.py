"""`decompress` gives dense linears back, all or none, and leaves `optimize` to `restore`."""

import pytest
import torch
from torch import nn

from lada_ops import LowRankLinear, compress, decompress, optimize, restore
from lada_ops.architectures.encoders import encoder_linears
from lada_ops.compression import decompress as module
from lada_ops.compression.plan import METHODS
from lada_ops.engine.optimize import fast_dtypes
from tests.compression.test_compress import Snapshot, fail_on_call, make_plan
from tests.tiny_encoders import outputs, tiny_bert


def test_refuses_a_module_with_an_activation():
    model = nn.Sequential(LowRankLinear(8, 8, 2), LowRankLinear(8, 8, 2, activation="gelu"))
    before = list(model)
    with pytest.raises(ValueError, match="1 has activation 'gelu'"):
        decompress(model)
    assert list(model) == before


@pytest.mark.parametrize("method", METHODS)
def test_outputs_stay(method):
    model = tiny_bert()
    compress(model, plan=make_plan(model, method), quiet=True)
    want = outputs(model)
    decompress(model)
    torch.testing.assert_close(outputs(model), want, rtol=1e-5, atol=1e-5)


def test_nothing_compressed_is_left():
    model = tiny_bert()
    names = list(encoder_linears(model))
    compress(model, plan=make_plan(model), quiet=True)
    assert decompress(model) == names
    assert list(encoder_linears(model)) == names
    assert model.state_dict().keys() == tiny_bert().state_dict().keys()


def test_config_is_that_of_a_dense_model():
    model = tiny_bert()
    before = model.config.to_dict()
    compress(model, plan=make_plan(model), quiet=True)
    decompress(model)
    assert model.config.to_dict() == before


def test_decompressed_model_can_be_compressed_again():
    model = tiny_bert()
    compress(model, plan=make_plan(model), quiet=True)
    decompress(model)
    assert len(compress(model, plan=make_plan(model, "block_sparse"), quiet=True).layers) == 12


def test_dense_model_stays():
    model = tiny_bert()
    before = Snapshot(model)
    assert decompress(model) == []
    before.assert_unchanged(model)


def test_frozen_stays_frozen():
    model = tiny_bert().requires_grad_(False)
    compress(model, plan=make_plan(model), quiet=True)
    decompress(model)
    assert not any(p.requires_grad for p in model.parameters())


def test_model_stays_compressed_if_it_fails(monkeypatch):
    model = tiny_bert()
    compress(model, plan=make_plan(model), quiet=True)
    before = Snapshot(model)
    monkeypatch.setattr(module, "forget_compression", fail_on_call(None, 1, OSError("stop")))
    with pytest.raises(OSError, match="stop"):
        decompress(model)
    before.assert_unchanged(model)


@pytest.mark.skipif(not fast_dtypes(), reason="no native library was built")
def test_refuses_an_optimized_model():
    model = tiny_bert()
    compress(model, plan=make_plan(model), quiet=True)
    names = restore(optimize(model))
    optimize(model)
    with pytest.raises(ValueError, match=r"the model is optimized; expected lada_ops.restore fir"):
        decompress(model)
    with pytest.raises(ValueError, match=r"query is optimized; expected lada_ops.restore first"):
        decompress(model.encoder.layer[0])
    assert restore(model) == names


def test_restore_leaves_a_compressed_model_that_is_not_optimized():
    model = tiny_bert()
    compress(model, plan=make_plan(model), quiet=True)
    before = Snapshot(model)
    assert restore(model) == []
    before.assert_unchanged(model)
