"""`weight` of compressed linears: readable as that of `nn.Linear`, not writable."""

import copy
import operator
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import T5Config, T5EncoderModel

from lada_ops import BlockSparseLinear, LowRankLinear, SparseLowRankLinear, compress
from tests.tiny_encoders import batch, tiny_bert

BLOCKS: dict[str, Any] = {"block": (8, 8), "density": 0.5}
KINDS = {
    "low_rank": lambda: LowRankLinear(32, 64, 8),
    "block_sparse": lambda: BlockSparseLinear(32, 64, **BLOCKS),
    "sparse_low_rank": lambda: SparseLowRankLinear(32, 64, 8, **BLOCKS),
}
WRITES = {
    "in place": lambda m: m.weight.add_(1),
    "operator": lambda m: operator.iadd(m.weight, 1),
    "data": lambda m: m.weight.data.copy_(m.format.to_dense()),
    "detached": lambda m: m.weight.detach().zero_(),
    "set data": lambda m: setattr(m.weight, "data", m.format.to_dense()),
    "item": lambda m: m.weight.__setitem__(0, 1),
    "initialised": lambda m: nn.init.normal_(m.weight),
    "set": lambda m: setattr(m, "weight", m.format.to_dense()),
}


@pytest.fixture(params=KINDS)
def module(request) -> Any:
    made = KINDS[request.param]()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    return made


def test_weight_is_the_dense_product(module):
    assert torch.equal(module.weight + 0, module.format.to_dense())
    assert (module.weight.shape, module.weight.dtype) == ((64, 32), torch.float32)


def test_gradients_go_through_the_weight_to_its_parameters(module):
    x = torch.randn(3, 32)
    F.linear(x, module.weight, module.bias).square().sum().backward()
    got = {name: p.grad.clone() for name, p in module.named_parameters()}
    module.zero_grad()
    module(x).square().sum().backward()
    torch.testing.assert_close(got, {name: p.grad for name, p in module.named_parameters()})


@pytest.mark.parametrize("write", WRITES)
def test_writing_into_the_weight_is_refused(module, write):
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(RuntimeError, match=r"weight.*multiplied out of other parameters; expected"):
        WRITES[write](module)
    assert all(torch.equal(t, before[n]) for n, t in module.state_dict().items())


def test_weight_is_no_part_of_the_module(module):
    assert "weight" not in {*module.state_dict(), *dict(module.named_parameters())}
    assert torch.equal(pickle.loads(pickle.dumps(module)).weight + 0, module.format.to_dense())


def test_shape_and_dtype_compute_nothing(module, monkeypatch):
    monkeypatch.setattr(type(module), "_compute_dense", None)
    weight = module.weight
    assert (weight.shape, weight.dtype, weight.requires_grad) == ((64, 32), torch.float32, True)
    assert (weight.device.type, weight.numel(), weight.dim()) == ("cpu", 2048, 2)


def test_compiled_code_reads_it(module):
    compiled = torch.compile(lambda x: F.linear(x, module.weight), backend="aot_eager")
    x = torch.randn(3, 32)
    torch.testing.assert_close(compiled(x), F.linear(x, module.format.to_dense()))


@pytest.mark.parametrize("method", KINDS)
def test_transformer_encoder_runs_on_it(method):
    layer = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    x = torch.randn(2, 5, 32)
    small: Any = {"block": (8, 8), "rank_multiple": 2, "layers": r"linear[12]$"}
    compress(model, 2, method, **small, quiet=True)
    with torch.no_grad():
        fast = model(x)
    torch.testing.assert_close(fast, model(x))  # with gradients it calls the modules


def test_t5_reads_its_dtype():
    config = T5Config(vocab_size=50, d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2)
    model = T5EncoderModel(config).eval()
    ids = torch.arange(8).view(2, 4)
    compress(model, 1.2, rank_multiple=1, layers=r"\.w[io]$", quiet=True)
    assert model(ids)[0].isfinite().all()


def test_peft_merges_its_adapters():
    peft = pytest.importorskip("peft")
    model, inputs = tiny_bert(), batch()
    compress(model, 2, rank_multiple=2, quiet=True)
    names = ["intermediate.dense.u", "intermediate.dense.v"]
    config = peft.LoraConfig(r=2, target_modules=[], target_parameters=names)
    adapted = peft.get_peft_model(model, config).eval()
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    want = adapted(**inputs)[0]
    torch.testing.assert_close(adapted.merge_and_unload()(**inputs)[0], want, rtol=1e-4, atol=1e-4)
