"""Hooks of bypassed modules: they are called, and their handles remove them."""

import threading

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from lada_ops import LowRankLinear, optimize, paths, restore
from tests.engine.inputs import ids
from tests.engine.models import compress, fused
from tests.tiny_encoders import tiny_bert

LINEAR = "encoder.layer.1.output.dense"
ENGINES = {"native": optimize, "fused": fused}


class Tripled:
    """Owner of a hook, with a lock, which cannot be copied."""

    def __init__(self):
        self.calls, self.lock = 0, threading.Lock()

    def hook(self, module, arguments, output):
        self.calls += 1
        return 3 * output


@torch.no_grad()
def output_of(model):
    return model(ids())[0]


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
def test_earlier_hooks_are_called_until_they_are_removed(engine):
    model, tripled = compress(tiny_bert()), Tripled()
    plain = output_of(model)
    handle = model.get_submodule(LINEAR).register_forward_hook(tripled.hook)
    want = output_of(model)
    for calls, change in ((2, engine), (3, restore), (4, optimize)):
        change(model)
        torch.testing.assert_close(output_of(model), want, rtol=1e-4, atol=1e-5)
        assert tripled.calls == calls
    handle.remove()
    torch.testing.assert_close(output_of(model), plain, rtol=1e-4, atol=1e-5)
    assert set(paths(model).values()) == {"native encoder, float32: compressed"}


def test_hooks_of_a_single_linear_are_called():
    model = nn.Sequential(LowRankLinear(24, 40, 6)).eval()
    handle = model[0].register_forward_pre_hook(lambda module, arguments: (2 * arguments[0],))
    x = torch.randn(5, 24)
    want = model(x)
    optimize(model)
    torch.testing.assert_close(model(x), want, rtol=1e-4, atol=1e-5)
    handle.remove()
    torch.testing.assert_close(model(2 * x), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
def test_global_hooks_are_called(engine):
    model, called = engine(compress(tiny_bert())), []
    output_of(model)
    handle = register_module_forward_hook(lambda module, *_: called.append(module))
    output_of(model)
    handle.remove()
    assert model.get_submodule(LINEAR) in called
    called.clear()
    output_of(model)
    assert called == []
