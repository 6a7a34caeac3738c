import functools
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertModel, ModernBertConfig, ModernBertModel
from transformers.models.bert.modeling_bert import BertEncoder

from lada_ops import LowRankLinear
from lada_ops.engine.find import SupportedEncoder, find_encoders
from tests.engine.models import compress
from tests.tiny_encoders import tiny_bert, with_head


def only(model):
    (found,) = find_encoders(model).values()
    return found


def test_an_encoder_inside_a_model():
    model = with_head("bert")
    assert list(find_encoders(model)) == ["bert.encoder"]
    found = only(model)
    assert isinstance(found, SupportedEncoder)
    assert found.module is model.bert.encoder
    assert (len(found.layers), found.activation) == (2, "gelu")


@pytest.mark.parametrize(
    ("hugging_face", "ours"),
    [("gelu", "gelu"), ("gelu_new", "gelu_tanh"), ("relu", "relu"), ("silu", "silu")],
)
def test_activations_by_their_names(hugging_face, ours):
    found = only(tiny_bert(hidden_act=hugging_face))
    assert isinstance(found, SupportedEncoder)
    assert found.activation == ours


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"hidden_act": "gelu_fast"}, "activation 'gelu_fast' is not known"),
        ({"is_decoder": True}, "it is a decoder"),
        ({"hidden_size": 48}, "layer 0 has features that are no multiple of 32"),
    ],
)
def test_unsupported_encoders_come_with_a_reason(changes, reason):
    assert reason in str(only(tiny_bert(**changes)))


@pytest.mark.parametrize(
    ("name", "module", "reason"),
    [
        ("output.dense", nn.Identity(), "layer 1 has a Identity"),
        ("output", nn.Identity(), "layer 1 has no output.dense"),
        ("output.LayerNorm", nn.RMSNorm(32), "layer 1 has a RMSNorm"),
        (
            "output.LayerNorm",
            nn.LayerNorm(32, bias=False),
            "layer 1 has a LayerNorm without weight or bias",
        ),
        (
            "intermediate.intermediate_act_fn",
            nn.ReLU(),
            "layer 1 computes something else than a BertLayer of its config does",
        ),
        (
            "output.dense",
            LowRankLinear(64, 32, 4, activation="relu"),
            "layer 1 has a linear with an activation",
        ),
    ],
)
def test_changed_layers_are_unsupported(name, module, reason):
    model = tiny_bert()
    model.encoder.layer[1].set_submodule(name, module)
    assert only(model) == reason


def test_changed_attention_is_unsupported():
    model = tiny_bert()
    model.encoder.layer[0].attention.self.is_causal = True
    assert only(model) == "layer 0 computes something else than a BertLayer of its config does"


def test_a_layer_that_fails_is_unsupported():
    model = tiny_bert(attn_implementation="eager")
    model.encoder.layer[1].attention.self.scaling = "none"
    assert "layer 1 cannot be tried: " in str(only(model))


def test_replaced_forwards_are_unsupported():
    model = tiny_bert()
    dense = model.encoder.layer[1].output.dense
    dense.forward = dense.forward
    assert only(model) == "layer 1 has another forward in output.dense"
    model.encoder.forward = model.encoder.forward
    assert only(model) == "its forward was replaced"


@pytest.mark.parametrize("make", [tiny_bert, lambda: compress(tiny_bert())])
def test_the_trial_of_layers_has_no_side_effects(make):
    model = make().train()
    called = []
    for module in model.modules():
        module.register_forward_hook(lambda *args: called.append(args))
    before = torch.get_rng_state()
    assert isinstance(only(model), SupportedEncoder)
    assert not called
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), before)


def test_weights_may_be_infinite_or_nan():
    model = tiny_bert()
    with torch.no_grad():
        model.encoder.layer[0].output.dense.weight.fill_(torch.nan)
    assert isinstance(only(model), SupportedEncoder)


@pytest.mark.parametrize("name", ["deberta", "deberta-v2", "albert"])
def test_layers_of_other_architectures_are_unsupported(name):
    assert "are not known" in str(only(with_head(name)))


def test_a_model_may_be_its_own_encoder():
    model = with_head("modernbert")
    found = only(model)
    assert isinstance(found, SupportedEncoder)
    assert found.module is found.model is model.model
    assert found.attention_types() == ["full_attention", "sliding_attention"]


@pytest.mark.parametrize("rope_type", ["linear", "yarn", "dynamic"])
def test_rope_types_that_depend_on_the_length_are_unsupported(rope_type):
    config = with_head("modernbert").config
    for rope in config.rope_parameters.values():
        rope |= {"rope_type": rope_type, "factor": 2.0, "original_max_position_embeddings": 20}
    found = only(ModernBertModel(config))
    if rope_type == "dynamic":
        assert found == "positions of kinds ['dynamic'] are not known"
    else:
        assert isinstance(found, SupportedEncoder)


def test_gates_of_partial_panels_are_unsupported():
    config = ModernBertConfig(
        **with_head("modernbert").config.to_diff_dict() | {"intermediate_size": 48}
    )
    assert only(ModernBertModel(config)) == "layer 0 has features that are no multiple of 32"


def test_mixed_layer_classes_are_unsupported():
    model = tiny_bert()
    model.encoder.layer[1] = nn.Identity()
    assert only(model) == "layer 1 is a Identity"


def test_a_layer_of_another_library_is_unsupported_despite_its_name():
    class BertLayer(nn.Identity):
        pass

    model = tiny_bert()
    model.encoder.layer[0] = BertLayer()
    assert only(model) == "layers of BertLayer are not those of transformers"


def test_a_subclass_of_an_encoder_is_unsupported():
    class Doubled(BertEncoder):
        def forward(self, *args, **others):
            y: Any = super().forward(*args, **others)
            return type(y)(last_hidden_state=2 * y[0])

    model = tiny_bert()
    model.encoder.__class__ = Doubled
    assert only(model) == "Doubled is not that of transformers"


def test_a_model_with_a_patched_forward_is_left_out(monkeypatch):
    own = BertModel.forward

    @functools.wraps(own)
    def forward(self, *args, **others):
        return own(self, *args, **others)

    monkeypatch.setattr(BertModel, "forward", forward)
    found = only(tiny_bert())
    assert isinstance(found, SupportedEncoder)
    assert found.model is None


def test_no_encoder_is_found_in_an_empty_one():
    model = tiny_bert()
    model.encoder.layer = nn.ModuleList()
    assert find_encoders(model) == {}
