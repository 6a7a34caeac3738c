"""The experiment's kernel, phase by phase and whole."""

import itertools
import random

import pytest
import torch
from transformers import BertConfig

from benchmarks.experiments.persistent_encoder import PersistentEncoder, low_rank_bert
from lada_ops.machine_code.compile import compile_launch
from lada_ops.machine_code.launches import recorded
from lada_ops.machine_code.targets import TARGETS
from tests.interpreter import interpreted

CONFIG = BertConfig(
    hidden_size=48, num_hidden_layers=2, num_attention_heads=3, intermediate_size=80
)


@pytest.fixture(scope="module")
def module():
    return interpreted({"persistent": "benchmarks.experiments.persistent_encoder"})


@pytest.fixture(scope="module")
def model():
    model = low_rank_bert(CONFIG, 2, torch.float32, "cpu")
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter)
    return model


@torch.no_grad()
def oracle(model, x):
    double = low_rank_bert(CONFIG, 2, torch.float64, "cpu")
    double.load_state_dict(model.state_dict())
    return double.get_submodule("encoder")(x.double()[None])[0][0]


def poisoned(encoder, x):
    return [buffer.fill_(torch.nan) for buffer in encoder.buffers(x)]


@pytest.mark.parametrize("length", [1, 17, 70])
def test_in_one_launch_of_one_program(module, model, length):
    encoder, x = module.persistent.PersistentEncoder(model), torch.randn(length, 48)
    want = oracle(model, x)
    got = encoder.encode_(x, poisoned(encoder, x), 1)
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_phases_do_not_depend_on_the_order_of_programs(module, model, seed, monkeypatch):
    """Each phase by itself: what a program writes in it no other one reads, or writes."""
    encoder, x = module.persistent.PersistentEncoder(model), torch.randn(37, 48)
    want, programs = oracle(model, x), 5
    order = random.Random(seed).sample(range(programs), programs)
    builder = module.triton.runtime.interpreter.interpreter_builder
    real = builder.set_grid_idx
    monkeypatch.setattr(builder, "set_grid_idx", lambda i, *others: real(order[i], *others))
    buffers = poisoned(encoder, x)
    for begin, end in itertools.pairwise(range(encoder.phases + 1)):
        encoder.encode_(x, buffers, programs, begin, end)
    torch.testing.assert_close(x.double(), want, rtol=1e-4, atol=1e-4)


def test_it_compiles_without_spills():
    encoder = PersistentEncoder(low_rank_bert(BertConfig(), 5, torch.float16, "meta"))
    x = torch.empty(128, 768, dtype=torch.float16, device="meta")
    with recorded() as launches:
        encoder.encode_(x, encoder.buffers(x), 132)
    binary = compile_launch(launches[0], TARGETS["sm_90"])
    assert binary.spills == 0
    assert binary.tensor_cores
