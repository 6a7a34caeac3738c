"""Names and arguments in the tables, compared with the layers and models of transformers."""

import inspect

import pytest
import torch
from torch import nn

from lada_ops.architectures.layers import LAYERS, MODELS
from tests.engine.models import KNOWN, dense
from tests.tiny_encoders import batch


def layers_of(model):
    """Encoder layers of a model that are in the table, by class name."""
    return {type(m).__name__: m for m in model.modules() if type(m).__name__ in LAYERS}


def encoder_of(name):
    """Model of an architecture in the table, its first layer, and the layer's names."""
    model = dense(name).base_model
    ((kind, layer),) = layers_of(model).items()
    return model, layer, LAYERS[kind]


def test_every_layer_and_model_is_tried():
    models = [dense(name).base_model for name in KNOWN]
    assert {kind for model in models for kind in layers_of(model)} == {*LAYERS}
    assert {type(model).__name__ for model in models} == {*MODELS}


@pytest.mark.parametrize("name", KNOWN)
class TestLayerNames:
    def test_all_linears_and_norms_of_the_layer(self, name):
        _, layer, names = encoder_of(name)
        kinds = {n: type(m) for n, m in layer.named_modules()}
        assert {n for n, kind in kinds.items() if kind is nn.Linear} == {*names.linears}
        norms = {n for n, kind in kinds.items() if kind is nn.LayerNorm}
        # the first layer of ModernBERT has an nn.Identity in place of its input norm
        assert norms == {n for n in names.norms if kinds[n] is not nn.Identity}
        assert all(n in kinds for n in names.norms)

    def test_linears_and_norms_run_in_the_order_of_the_names(self, name):
        model, layer, names = encoder_of(name)
        ran = []
        for module_name in (*names.linears, *names.norms):
            hook = lambda *_, module_name=module_name: ran.append(module_name)  # noqa: E731
            layer.get_submodule(module_name).register_forward_hook(hook)
        model(**batch())
        assert [n for n in ran if n in names.linears] == [*names.linears]
        assert [n for n in ran if n in names.norms] == [*names.norms]

    def test_pre_norm_layers_alone_have_an_input_norm(self, name):
        _, _, names = encoder_of(name)
        assert (names.input_norm is None) == (names.output_norm is not None)

    def test_gated_layers_double_the_intermediate_features(self, name):
        _, layer, names = encoder_of(name)
        intermediate, output = map(layer.get_submodule, (names.intermediate, names.output))
        assert intermediate.out_features == (1 + names.gated) * output.in_features

    def test_layers_return_hidden_states_or_a_tuple_with_them(self, name):
        model, layer, names = encoder_of(name)
        returned = []
        layer.register_forward_hook(lambda _module, _inputs, output: returned.append(output))
        model(**batch())
        assert isinstance(returned[0], tuple if names.returns_tuple else torch.Tensor)

    def test_positions_are_an_argument_of_the_layer(self, name):
        _, layer, names = encoder_of(name)
        arguments = inspect.signature(type(layer).forward).parameters
        known = {"position_bias", "position_embeddings"} & {*arguments}
        assert known == ({names.positions} - {None})


def test_the_encoder_maps_hidden_states_to_relative_position_biases():
    model, _, names = encoder_of("mpnet")
    assert names.position_bias is not None
    assert isinstance(model.encoder.get_submodule(names.position_bias.module), nn.Embedding)
    bias = getattr(model.encoder, names.position_bias.method)(torch.zeros(2, 9, 32))
    assert bias.shape == (2, 2, 9, 9)
    torch.testing.assert_close(bias[..., 1:, 1:], bias[..., :-1, :-1], rtol=0, atol=0)


@pytest.mark.parametrize("name", KNOWN)
class TestArchitecture:
    def test_inputs_are_arguments_of_embeddings_and_model(self, name):
        model = dense(name).base_model
        inputs = {*MODELS[type(model).__name__].inputs}
        for module in (model.embeddings, model):
            assert inputs <= {*inspect.signature(type(module).forward).parameters}

    def test_output_is_that_of_the_model(self, name):
        model = dense(name).base_model
        assert type(model(**batch())) is MODELS[type(model).__name__].output
