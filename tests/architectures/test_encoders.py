import pytest
import torch
from torch import nn

from lada_ops import compress, optimize
from lada_ops.architectures.encoders import encoder_linears
from lada_ops.engine.optimize import fast_dtypes
from tests.tiny_encoders import ARCHITECTURES, batch, tiny_bert, with_head

PER_LAYER = {  # of the model with its head, from the module names that transformers gives
    "bert": "attention.self.query attention.self.key attention.self.value attention.output.dense "
    "intermediate.dense output.dense",
    "distilbert": "attention.q_lin attention.k_lin attention.v_lin attention.out_lin "
    "ffn.lin1 ffn.lin2",
    "mpnet": "attention.attn.q attention.attn.k attention.attn.v attention.attn.o "
    "intermediate.dense output.dense",
    "modernbert": "attn.Wqkv attn.Wo mlp.Wi mlp.Wo",
    "albert": "attention.query attention.key attention.value attention.dense ffn ffn_output",
    "deberta": "attention.self.in_proj attention.self.pos_proj attention.self.pos_q_proj "
    "attention.output.dense intermediate.dense output.dense",
    "deberta-v2": "attention.self.query_proj attention.self.key_proj attention.self.value_proj "
    "attention.self.pos_key_proj attention.self.pos_query_proj "
    "attention.output.dense intermediate.dense output.dense",
}
PER_LAYER |= {"roberta": PER_LAYER["bert"], "electra": PER_LAYER["bert"]}
LAYERS = {
    "distilbert": ["distilbert.transformer.layer.0", "distilbert.transformer.layer.1"],
    "modernbert": ["model.layers.0", "model.layers.1"],
    "albert": ["albert.encoder.albert_layer_groups.0.albert_layers.0"],
    "deberta-v2": ["deberta.encoder.layer.0", "deberta.encoder.layer.1"],
}


def layers(name):
    return LAYERS.get(name, [f"{name}.encoder.layer.0", f"{name}.encoder.layer.1"])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_all_linears_of_the_encoder_and_no_other(name):
    want = {f"{layer}.{linear}" for layer in layers(name) for linear in PER_LAYER[name].split()}
    assert set(encoder_linears(with_head(name))) == want


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_nothing_dense_is_left_in_a_layer(name):
    model = with_head(name)
    found = encoder_linears(model)
    for prefix in layers(name):
        for path, module in model.get_submodule(prefix).named_modules(prefix=prefix):
            assert not isinstance(module, nn.Linear) or path in found


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_names_without_a_head(name):
    model = with_head(name)
    base = getattr(model, model.base_model_prefix)
    prefix = f"{model.base_model_prefix}."
    want = [found.removeprefix(prefix) for found in encoder_linears(model)]
    assert list(encoder_linears(base)) == want


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_linear_found_takes_part(name):
    model = with_head(name)
    ran = set()
    for found, linear in encoder_linears(model).items():
        linear.register_forward_hook(lambda *_, found=found: ran.add(found))
    model(**batch())
    assert ran == set(encoder_linears(model))


def test_order_is_that_of_the_modules():
    found = list(encoder_linears(tiny_bert()))
    assert found[:2] == [
        "encoder.layer.0.attention.self.query",
        "encoder.layer.0.attention.self.key",
    ]
    assert found[-1] == "encoder.layer.1.output.dense"


def test_many_layers_have_two_digits():
    assert len(encoder_linears(tiny_bert(num_hidden_layers=12))) == 72


def test_cross_attention_is_left_out():
    with torch.device("meta"):
        model = tiny_bert(is_decoder=True, add_cross_attention=True)
    assert not [found for found in encoder_linears(model) if "crossattention" in found]


def test_wrapped_model_is_found():
    assert len(encoder_linears(nn.ModuleDict({"teacher": tiny_bert()}))) == 12


def test_pattern_is_searched():
    found = encoder_linears(tiny_bert(), r"layer\.1\..*(query|key)$")
    assert [name.rsplit(".", 1)[1] for name in found] == ["query", "key"]


def test_pattern_may_name_other_linears():
    assert list(encoder_linears(tiny_bert(), "pooler")) == ["pooler.dense"]


def test_subclasses_of_linear_are_left_out():
    class Special(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(4, 4), Special(4, 4))
    assert list(encoder_linears(model, "")) == ["0"]


def test_no_match_names_linears_there_are():
    with pytest.raises(ValueError, match=r"no encoder linear found in Sequential.*\(0, 1\)"):
        encoder_linears(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))


def test_no_match_of_a_pattern_names_it():
    with pytest.raises(ValueError, match=r"layers='nothing' matches none .*query.*, \.\.\.\)"):
        encoder_linears(tiny_bert(), "nothing")


def test_no_linears_at_all():
    with pytest.raises(ValueError, match="none at all"):
        encoder_linears(nn.Sequential(nn.ReLU()))


@pytest.mark.parametrize("layers", [None, "query", r"query$"])
def test_unmerged_adapters_are_refused(layers):
    """Unmerged, their linears would be left out, or compressed without the adapter."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["query", "value"])
    model = peft.get_peft_model(tiny_bert(), config)
    with pytest.raises(
        ValueError,
        match=r"self\.query is an unmerged adapter, peft's Linear; .*merge_and_unload\(\)",
    ):
        encoder_linears(model, layers)
    assert len(encoder_linears(model, r"key$")) == 2
    assert len(encoder_linears(model.merge_and_unload())) == 12


def test_a_compressed_model_is_named_as_such():
    model = tiny_bert()
    compress(model, 2, rank_multiple=2, quiet=True)
    with pytest.raises(ValueError, match="BertModel is compressed already: .*query is a LowRank"):
        encoder_linears(model)


def test_an_optimized_model_is_named_as_such():
    if not fast_dtypes():
        pytest.skip("no native library was built")
    model = optimize(tiny_bert())
    with pytest.raises(ValueError, match=r"BertModel is optimized: .*; expected lada_ops.restore"):
        encoder_linears(model)


def test_dense_linears_of_a_partly_compressed_model_are_found():
    model = tiny_bert()
    compress(model, 2, rank_multiple=2, layers="query", quiet=True)
    assert len(encoder_linears(model)) == 10
