"""Changes after `optimize`: the model computes what the changed model does, or refuses them."""

import copy
import logging
import threading
from multiprocessing.reduction import ForkingPickler
from typing import Any

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from torch import nn
from torch.nn.utils import parametrize
from transformers import AttentionInterface
from transformers.models.bert.modeling_bert import BertEncoder, BertLayer

from lada_ops import optimize, restore
from tests.engine.inputs import ids, mask_of
from tests.engine.models import compress, compressed, fused
from tests.tiny_encoders import tiny_bert

ENGINES = {"native": optimize, "fused": fused}


def norm(model):
    return model.encoder.layer[1].attention.output.LayerNorm


def cut(model):
    model.encoder.layer = model.encoder.layer[:1]


def cut_in_place(model):
    del model.encoder.layer[0]


def swap_layers(model):
    first, second = model.encoder.layer
    model.encoder.layer[0], model.encoder.layer[1] = second, first


def replace_layer(model):
    model.encoder.layer[1] = BertLayer(model.config).eval()


def replace_linear(model):
    model.encoder.layer[0].output.dense = nn.Linear(64, 32)


def replace_encoder(model):
    model.encoder = BertEncoder(model.config).eval()


def replace_norm(model):
    model.encoder.layer[0].output.LayerNorm = nn.LayerNorm(32, eps=0.1)


def replace_activation(model):
    model.encoder.layer[0].intermediate.intermediate_act_fn = nn.ReLU()


def assign_weight(model):
    norm(model).weight = nn.Parameter(torch.linspace(0, 2, 32))


def assign_data(model):
    norm(model).weight.data = torch.linspace(0, 2, 32)


def multiply_data(model):
    norm(model).weight.data.mul_(1.5)


def parametrized(model):
    class Doubled(nn.Module):
        def forward(self, x):
            return 2 * x

    parametrize.register_parametrization(norm(model), "weight", Doubled())


def another_forward(model):
    output = model.encoder.layer[1].output
    output.forward = lambda x, residual: residual + 1


def another_forward_of_a_layer(model):
    layer = model.encoder.layer[1]
    layer.forward = lambda x, *args, **others: 2 * x


def another_attention(model):
    def uniform(module, query, key, value, *args, **others):
        return value.mean(2, keepdim=True).expand_as(value).transpose(1, 2).contiguous(), None

    AttentionInterface.register("uniform", uniform)
    model.set_attn_implementation("uniform")


def change_eps(model):
    norm(model).eps = 10.0


def change_scaling(model):
    model.encoder.layer[0].attention.self.scaling = 100.0


def make_causal(model):
    model.config.is_decoder = True


def make_double(module):
    class Doubled(type(module)):
        def forward(self, *args, **others):
            y = super().forward(*args, **others)
            return 2 * y if isinstance(y, torch.Tensor) else type(y)(last_hidden_state=2 * y[0])

    module.__class__ = Doubled


def another_class_of_the_encoder(model):
    make_double(model.encoder)


def another_class_of_the_model(model):
    make_double(model)


CHANGES = [
    *(cut, cut_in_place, swap_layers, replace_layer, replace_linear, replace_encoder, replace_norm),
    *(replace_activation, assign_weight, assign_data, parametrized, another_forward),
    *(another_forward_of_a_layer, another_attention, change_eps, change_scaling, make_causal),
    *(another_class_of_the_encoder, another_class_of_the_model),
]


@pytest.fixture(params=ENGINES)
def pair(request):
    """A compressed model, and the same model with an engine, which has run once."""
    before, after = (compress(tiny_bert()) for _ in range(2))
    ENGINES[request.param](after)
    output_of(after)
    return before, after


@torch.no_grad()
def output_of(model):
    return model(ids(), mask_of("111111111", "111100000", "100000000"))[0][:, 0]


def changed(model, change):
    torch.manual_seed(1)
    change(model)
    return model


@pytest.mark.parametrize("change", CHANGES)
def test_outputs_follow_the_change(pair, change, caplog):
    before, after = (changed(model, change) for model in pair)
    with caplog.at_level(logging.WARNING, "lada_ops"):
        for _ in range(2):
            torch.testing.assert_close(output_of(after), output_of(before), rtol=1e-4, atol=1e-5)
    if change is not replace_encoder:  # the engine is gone with it
        (warning,) = caplog.messages
        assert "was changed after lada_ops.optimize" in warning
        assert "call lada_ops.restore" in warning


@pytest.mark.parametrize("change", CHANGES)
def test_outputs_of_the_restored_model_follow_the_change(pair, change):
    before, after = (changed(model, change) for model in pair)
    restore(after)
    torch.testing.assert_close(output_of(after), output_of(before), rtol=1e-4, atol=1e-5)


def test_irrelevant_changes_are_ignored(pair, caplog):
    _, model = pair
    model.gradient_checkpointing_enable()
    model.encoder.layer[0].chunk_size_feed_forward = 3
    model.config.id2label = {0: "no"}
    model.set_attn_implementation("eager")
    model.resize_token_embeddings(64, mean_resizing=False)
    output_of(model)
    assert caplog.messages == []


@torch.no_grad()
def test_a_new_config_is_used(pair):
    for model in pair:
        model.config = copy.deepcopy(model.config)
        model.config.output_hidden_states = True
        assert len(model(ids()).hidden_states) == 3


def test_values_written_into_a_norm_are_used(pair):
    before, after = (changed(model, multiply_data) for model in pair)
    torch.testing.assert_close(output_of(after), output_of(before), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("assign", [False, True])
def test_weights_loaded_into_a_norm_are_used(assign):
    before, after = compress(tiny_bert()), optimize(compress(tiny_bert()))
    state = {name: t + 0.5 for name, t in norm(before).state_dict().items()}
    for model in (before, after):
        norm(model).load_state_dict(state, assign=assign)
    torch.testing.assert_close(output_of(after), output_of(before), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("assign", [False, True])
def test_weights_loaded_into_a_fused_layer_are_refused(assign):
    model = fused(compress(tiny_bert()))
    state = {name: t + 0.5 for name, t in norm(model).state_dict().items()}
    with pytest.raises(RuntimeError, match="optimized for inference"):
        norm(model).load_state_dict(state, assign=assign)


def test_conversion_to_half_precision(pair):
    before, after = (model.bfloat16() for model in pair)
    # two steps of bf16 between 2 and 4
    torch.testing.assert_close(output_of(after), output_of(before), rtol=0, atol=2**-5)


@torch.no_grad()
def test_functional_call_replaces_a_norm_for_one_call(pair):
    name = "encoder.layer.1.attention.output.LayerNorm.weight"
    given = {name: torch.linspace(0, 2, 32)}
    usual = output_of(pair[1])
    want, got = (torch.func.functional_call(m, given, (ids(),))[0] for m in pair)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert output_of(pair[1]).equal(usual)


def test_functional_call_of_a_linear_is_refused():
    model = optimize(compress(tiny_bert()))
    given = {"encoder.layer.0.output.dense.u": torch.zeros(32, 10)}
    with pytest.raises(RuntimeError, match=r"u cannot be set: .* call lada_ops.restore first"):
        torch.func.functional_call(model, given, (ids(),))


def test_lora_added_later_is_refused():
    with pytest.raises(ValueError, match=r"lada_ops.restore gives it back"):
        get_peft_model(optimize(compressed("bert")), LoraConfig(target_modules=["query"]))


@torch.no_grad()
@pytest.mark.parametrize("padded", [False, True])
def test_prefix_tuning_is_followed(padded):
    config = PrefixTuningConfig(
        task_type="SEQ_CLS", num_virtual_tokens=3, num_layers=2, num_attention_heads=2, token_dim=32
    )
    found = []
    for ready in (lambda m: m, optimize):
        torch.manual_seed(0)
        model: Any = get_peft_model(ready(compressed("bert")), config).eval()
        mask = mask_of("111111111", "111100000", "100000000") if padded else torch.ones(3, 9)
        found.append(model(input_ids=ids(), attention_mask=mask).logits)
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)


class TestInSharedMemory:
    def test_the_engine_goes_on(self, caplog):
        model = optimize(compress(tiny_bert()))
        want = output_of(model)
        model.share_memory()
        assert output_of(model).equal(want)
        assert caplog.messages == []

    def test_pickling_for_another_process_leaves_the_model(self):
        model = optimize(compress(tiny_bert()))
        want = output_of(model)
        wrong, stop = [], threading.Event()

        def call():
            while not stop.is_set():
                if not output_of(model).equal(want):
                    wrong.append(1)

        thread = threading.Thread(target=call)
        thread.start()
        pickler: Any = ForkingPickler
        for _ in range(20):
            pickler.dumps(model)
            torch.full((1 << 18,), float("nan"))  # what was freed is written to
        stop.set()
        thread.join()
        assert wrong == []
        assert output_of(model).equal(want)
        assert output_of(pickler.loads(pickler.dumps(model))).equal(want)


def test_a_copy_detects_its_own_changes_only(pair):
    before, after = pair
    other = copy.deepcopy(after)
    want = output_of(after)
    cut(other)
    cut(before)
    torch.testing.assert_close(output_of(other), output_of(before), rtol=1e-4, atol=1e-5)
    assert output_of(after).equal(want)
