"""Pre-norm encoders: ModernBERT's, with RoPE, sliding windows and gated linear units."""

import copy

import pytest
import torch
from torch import nn
from transformers import ModernBertConfig
from transformers.models.modernbert.modeling_modernbert import ModernBertEncoderLayer

from lada_kernels.cpu.encoder import PackedEncoder, PackedLayer
from lada_kernels.cpu.packing import Weight, pack
from tests.kernels.cpu.test_encoder import LENGTHS, assert_near, run

POSITIONS = 130


def modern_layers(hidden=64, heads=2, count=3, intermediate=96, window=4):
    """ModernBERT layers: the first attends globally, the others within a window."""
    config = ModernBertConfig(
        hidden_size=hidden,
        num_attention_heads=heads,
        intermediate_size=intermediate,
        num_hidden_layers=count,
        local_attention=2 * window,
        norm_bias=True,
    )
    config._attn_implementation = "eager"
    layers = [ModernBertEncoderLayer(config, i).eval() for i in range(count)]
    for parameter in (p for layer in layers for p in layer.parameters()):
        parameter.data.normal_(std=0.15).add_(parameter.ndim == 1)
    return layers


def cos_sin_of(layer):
    """Rotary embedding (positions, features of a head): cosines, then sines."""
    head = layer.config.hidden_size // layer.config.num_attention_heads
    base = layer.config.rope_parameters[layer.attention_type]["rope_theta"]
    frequencies = base ** -(torch.arange(0, head, 2) / head)
    angles = torch.arange(POSITIONS)[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], 1)


def window_of(layer):
    return layer.config.sliding_window if layer.attention_type == "sliding_attention" else None


def packed(layers, dtype):
    def linear(module):
        weight = Weight(module.out_features, module.in_features, sparse=module.weight.detach())
        return pack([weight], [module.bias], dtype)

    def norm(module):
        return module.weight.detach().numpy(), module.bias.detach().numpy(), module.eps

    packed_layers = [
        PackedLayer(
            linear(layer.attn.Wqkv),
            linear(layer.attn.Wo),
            linear(layer.mlp.Wi),
            linear(layer.mlp.Wo),
            norm(layer.mlp_norm),
            None,
            "gelu",
            input_norm=None if isinstance(layer.attn_norm, nn.Identity) else norm(layer.attn_norm),
            gated=True,
            cos_sin=cos_sin_of(layer).numpy(),
            window=window_of(layer),
        )
        for layer in layers
    ]
    config = layers[0].config
    heads = config.num_attention_heads
    return PackedEncoder(packed_layers, heads, (config.hidden_size / heads) ** -0.5)


@torch.no_grad()
def oracle(layers, x, lengths):
    """Outputs in fp64, sequence by sequence."""
    outputs = []
    for sequence in x.double().split(lengths):
        hidden, position = sequence[None], torch.arange(len(sequence))
        distance = (position - position[:, None]).abs()
        for layer in (copy.deepcopy(layer).double() for layer in layers):
            window = window_of(layer)
            far = distance > (len(sequence) if window is None else window)
            mask = torch.zeros(far.shape).masked_fill(far, -torch.inf)[None, None]
            cos_sin = cos_sin_of(layer).double()[: len(sequence)]
            cos, sin = (half.repeat(1, 2)[None] for half in cos_sin.chunk(2, 1))
            if len(sequence):
                hidden = layer(hidden, mask, (cos, sin))
        outputs.append(hidden[0])
    return torch.cat(outputs)


@pytest.mark.parametrize("threads", [pytest.param(1, marks=pytest.mark.exhaustive), 2])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_sequences_of_any_length(lengths, threads, dtype, library):
    torch.set_num_threads(threads)
    layers, x = modern_layers(), torch.randn(sum(lengths), 64)
    y = run(packed(layers, dtype), x, lengths, library)
    assert_near(y, oracle(layers, x, lengths), dtype)


@pytest.mark.parametrize("window", [0, 1, 31, 32, 70])
def test_windows_of_any_width(window, dtype, library):
    layers, lengths = modern_layers(window=window), [67, 33, 1]
    x = torch.randn(101, 64)
    y = run(packed(layers, dtype), x, lengths, library)
    assert_near(y, oracle(layers, x, lengths), dtype)


@pytest.mark.parametrize(("hidden", "heads"), [(96, 1), (96, 4), (160, 8), (192, 16)])
def test_heads_of_any_width(hidden, heads, dtype, library):
    layers, lengths = modern_layers(hidden, heads, count=2, intermediate=32), [19, 34]
    x = torch.randn(53, hidden)
    y = run(packed(layers, dtype), x, lengths, library)
    assert_near(y, oracle(layers, x, lengths), dtype)


@pytest.mark.parametrize("layers", [slice(0, 1), slice(1, 3), slice(2, 3)])
def test_some_of_the_layers(layers, library):
    whole, lengths = modern_layers(), [11, 20]
    x = torch.randn(31, 64)
    y = run(packed(whole, torch.float32), x, lengths, library, layers)
    assert_near(y, oracle(whole[layers], x, lengths), torch.float32)


def test_keys_beyond_the_window_have_no_effect(dtype, library):
    encoder = packed(modern_layers(count=2)[1:], dtype)
    x = torch.randn(40, 64)
    before = run(encoder, x, [40], library)
    x[25:] *= 9
    x[25:] += torch.randn(64)
    after = run(encoder, x, [40], library)
    torch.testing.assert_close(after[:21], before[:21], rtol=0, atol=0)
    assert (after[21:] != before[21:]).any(1).all()


def test_max_length_is_the_number_of_rotary_positions():
    encoder = packed(modern_layers(), torch.float32)
    assert encoder.max_length == POSITIONS
    assert encoder.position_dependent
