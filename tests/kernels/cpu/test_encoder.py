import copy
import pickle
import threading

import pytest
import torch
import torch.nn.functional as F
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertLayer

from lada_kernels.cpu.encoder import PackedEncoder, PackedLayer, reach_for
from lada_kernels.cpu.packing import Weight, pack

# least cosine similarity of a token to fp64
COSINE = {torch.float32: 1 - 1e-9, torch.bfloat16: 0.999, torch.int8: 0.99}
LENGTHS = {
    "one token": [1],
    "ragged": [7, 8, 9, 33, 1],
    "an empty one between": [5, 0, 40],
    "beyond a panel of keys": [70, 129],
    "many tokens": [64] * 9,
    "short ones in one batch": [13] * 12,
}


def bert_layers(hidden=64, heads=2, count=2, intermediate=100):
    config = BertConfig(
        hidden_size=hidden, num_attention_heads=heads, intermediate_size=intermediate
    )
    config._attn_implementation = "eager"
    layers = [BertLayer(config, i).eval() for i in range(count)]
    for parameter in (p for layer in layers for p in layer.parameters()):
        parameter.data.normal_(std=0.15).add_(parameter.ndim == 1)
    return layers


def packed(layers, heads, dtype, position_bias=None):
    def linear(*modules):
        weights = [Weight(m.out_features, m.in_features, sparse=m.weight.detach()) for m in modules]
        return pack(weights, [m.bias.detach() for m in modules], dtype)

    def norm(module):
        return module.weight.detach().numpy(), module.bias.detach().numpy(), module.eps

    packed_layers = []
    for layer in layers:
        attention = layer.attention
        packed_layers.append(
            PackedLayer(
                linear(attention.self.query, attention.self.key, attention.self.value),
                linear(attention.output.dense),
                linear(layer.intermediate.dense),
                linear(layer.output.dense),
                norm(attention.output.LayerNorm),
                norm(layer.output.LayerNorm),
                "gelu",
            )
        )
    hidden = layers[0].output.dense.out_features
    position_bias = None if position_bias is None else position_bias.numpy()
    return PackedEncoder(packed_layers, heads, (hidden / heads) ** -0.5, position_bias)


@torch.no_grad()
def oracle(layers, x, lengths, bias=None):
    """Outputs in fp64, sequence by sequence."""
    outputs = []
    for sequence in x.double().split(lengths):
        hidden, mask = sequence[None], None
        if bias is not None:
            position = torch.arange(len(sequence))
            distance = position - position[:, None]
            mask = bias.double()[:, distance + bias.shape[1] // 2][None]
        for layer in (copy.deepcopy(layer).double() for layer in layers):
            hidden = layer(hidden, mask) if len(sequence) else hidden
        outputs.append(hidden[0])
    return torch.cat(outputs)


def run(encoder, x, lengths, library, layers=slice(None)):
    starts = torch.tensor([0, *lengths]).cumsum(0)
    y = encoder.run_(x.to(encoder.io_dtype, copy=True), starts, layers, library)
    return y.float()


def assert_near(y, want, dtype):
    assert y.isfinite().all()
    assert F.cosine_similarity(y.double(), want).min() > COSINE[dtype]
    if dtype == torch.float32:
        torch.testing.assert_close(y.double(), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_sequences_of_any_length(lengths, threads, dtype, library):
    torch.set_num_threads(threads)
    layers = bert_layers()
    x = torch.randn(sum(lengths), 64)
    y = run(packed(layers, 2, dtype), x, lengths, library)
    assert_near(y, oracle(layers, x, lengths), dtype)


@pytest.mark.parametrize("threads", [pytest.param(1, marks=pytest.mark.exhaustive), 2])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_relative_position_bias(lengths, threads, dtype, library):
    torch.set_num_threads(threads)
    layers = bert_layers()
    x, bias = torch.randn(sum(lengths), 64), 2 * torch.randn(2, 2 * reach_for(max(lengths)))
    encoder = packed(layers, 2, dtype, bias)
    y = run(encoder, x, lengths, library)
    assert encoder.max_length == max(lengths)
    assert_near(y, oracle(layers, x, lengths, bias), dtype)


def test_length_is_unlimited_without_position_bias():
    assert packed(bert_layers(), 2, torch.float32).max_length is None


@pytest.mark.parametrize("heads", [1, 4, 8])
@pytest.mark.parametrize("hidden", [96, 160])
def test_heads_of_any_width(hidden, heads, dtype, library):
    layers, lengths = bert_layers(hidden, heads, count=1), [19, 34]
    x = torch.randn(53, hidden)
    y = run(packed(layers, heads, dtype), x, lengths, library)
    assert_near(y, oracle(layers, x, lengths), dtype)


def test_some_of_the_layers(library):
    layers, lengths = bert_layers(count=3), [11, 20]
    encoder = packed(layers, 2, torch.float32)
    x = torch.randn(31, 64)
    y = run(encoder, x, lengths, library, slice(1, 3))
    assert_near(y, oracle(layers[1:], x, lengths), torch.float32)


def test_memory_that_was_used_before_changes_nothing(dtype, library):
    encoder = packed(bert_layers(), 2, dtype)
    x = torch.randn(300, 64)
    first = run(encoder, x[:9], [9], library)
    run(encoder, x * 100, [300], library)
    torch.testing.assert_close(run(encoder, x[:9], [9], library), first, rtol=0, atol=0)


@pytest.mark.usefixtures("poisoned_workspace")
def test_memory_that_is_not_finite_changes_nothing(dtype, library):
    x = torch.randn(21, 64)
    layers = bert_layers(intermediate=77)  # the last VNNI group is not whole
    assert_near(run(packed(layers, 2, dtype), x, [21], library), oracle(layers, x, [21]), dtype)


def test_two_threads_of_python_at_once(dtype, library):
    torch.set_num_threads(2)
    encoder = packed(bert_layers(), 2, dtype)
    inputs = [torch.randn(n, 64) for n in (20, 45)]
    want = [run(encoder, x, [len(x)], library) for x in inputs]
    wrong = []

    def work(x, expected):
        for _ in range(20):
            if not run(encoder, x, [len(x)], library).equal(expected):
                wrong.append(len(x))

    pool = [threading.Thread(target=work, args=pair) for pair in zip(inputs, want, strict=True)]
    for thread in pool:
        thread.start()
    for thread in pool:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))])
def test_copies_have_weights_of_their_own(copied, library):
    encoder = packed(bert_layers(), 2, torch.float32)
    x = torch.randn(12, 64)
    want = run(encoder, x, [12], library)
    other = copied(encoder)
    for layer in encoder.layers:
        layer.intermediate.sparse_u.values.fill(0)
    torch.testing.assert_close(run(other, x, [12], library), want, rtol=0, atol=0)


def test_a_token_that_is_not_finite_stays_in_its_sequence(library):
    layers = bert_layers()
    x = torch.randn(30, 64)
    x[3] = float("nan")
    y = run(packed(layers, 2, torch.float32), x, [10, 20], library)
    assert y[:10].isnan().all()
    assert_near(y[10:], oracle(layers, x[10:], [20]), torch.float32)
