import pytest
import torch

import lada_ops
from lada_ops import capture_graphs, compress, decompress, layer_statistics, plan, restore, shrink
from tests.compression.test_compress import make_plan
from tests.tiny_encoders import batch, tiny_bert

CALLS = {
    "plan": lambda model: plan(model, calibration=[batch()]),
    "layer_statistics": lambda model: layer_statistics(model, [batch()], quiet=True),
    "compress": lambda model: compress(model, plan=make_plan(tiny_bert()), quiet=True),
    "shrink": shrink,
    "decompress": decompress,
    "restore": restore,
    "capture_graphs": lambda model: capture_graphs(model, [(1, 1)]),
}
NEED_VALUES = ["plan", "layer_statistics", "compress", "shrink"]


@pytest.mark.parametrize("model", ["bert", None, {}, tiny_bert], ids=["str", "None", "dict", "def"])
@pytest.mark.parametrize("name", CALLS)
def test_other_types_than_modules_are_named(name, model):
    assert hasattr(lada_ops, name)
    message = f"{name}: model is {type(model).__name__}; expected a torch.nn.Module"
    with pytest.raises(TypeError, match=message):
        CALLS[name](model)


@pytest.mark.parametrize("name", NEED_VALUES)
def test_weights_on_the_meta_device_are_named(name):
    with torch.device("meta"):
        model = tiny_bert()
    modules = dict(model.named_modules())
    message = f"{name}: embeddings.word_embeddings.weight is on torch's meta device; expected"
    with pytest.raises(ValueError, match=message):
        CALLS[name](model)
    assert dict(model.named_modules()) == modules
