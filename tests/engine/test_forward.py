from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from lada_ops import optimize
from tests.engine.inputs import MASKS, MORE_THAN_PADDING, assert_equal_where_visible, ids, mask_of
from tests.engine.models import compress, compressed
from tests.tiny_encoders import tiny_bert


@torch.no_grad()
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_any_mask(pair, mask):
    before, after = (model(input_ids=ids(), attention_mask=mask)[0] for model in pair)
    assert_equal_where_visible(after, before, mask)
    if mask is not None:
        assert not after[mask == 0].any()


@torch.no_grad()
def test_a_row_of_padding_leaves_the_others(pair):
    mask = mask_of("111111111", "000000000", "111110000")
    before, after = (model(input_ids=ids(), attention_mask=mask)[0] for model in pair)
    assert_equal_where_visible(after, before, mask)
    assert not after[1].any()


@torch.no_grad()
def test_a_batch_of_padding_is_zeros(pair):
    assert not pair[1](input_ids=ids(), attention_mask=torch.zeros(3, 9))[0].any()


@torch.no_grad()
@pytest.mark.parametrize("shape", [(3, 1, 1, 9), (3, 1, 9, 9)], ids=str)
def test_a_mask_in_the_form_of_the_scores(shape):
    mask = MASKS["right"]
    whole = mask.bool()[:, None, None].expand(shape)
    model = compress(tiny_bert())
    want = model(input_ids=ids(), attention_mask=whole)[0]
    got = optimize(model)(input_ids=ids(), attention_mask=whole)[0]
    assert_equal_where_visible(got, want, mask)


@torch.no_grad()
def test_an_empty_batch(pair):  # transformers itself refuses
    assert pair[1](input_ids=ids(0))[0].shape == (0, 9, 32)


@torch.no_grad()
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (7, 2)])
def test_any_batch(pair, size):
    before, after = (model(input_ids=ids(*size))[0] for model in pair)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_embeddings_instead_of_ids(pair):
    embeddings = torch.randn(2, 6, 32)
    before, after = (model(inputs_embeds=embeddings)[0] for model in pair)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("by_config", [False, True], ids=["argument", "config"])
def test_hidden_states(pair, by_config):
    mask = MASKS["right"]
    arguments = {} if by_config else {"output_hidden_states": True}
    found = []
    for model in pair:
        model.config.output_hidden_states = by_config
        found.append(model(input_ids=ids(), attention_mask=mask, **arguments).hidden_states)
    assert len(found[1]) == 3
    for after, before in zip(found[1], found[0], strict=True):
        assert_equal_where_visible(after, before, mask)


@torch.no_grad()
@pytest.mark.parametrize("name", ["bert", "distilbert"])
@pytest.mark.parametrize("by_config", [False, True], ids=["argument", "config"])
def test_attention_weights(name, by_config):
    models = compressed(name), optimize(compressed(name))
    arguments = {} if by_config else {"output_attentions": True}
    found = []
    for model in models:
        model.set_attn_implementation("eager")
        model.config.output_attentions = by_config
        found.append(model(input_ids=ids(), **arguments).attentions)
    assert len(found[1]) == 2
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_attention_weights_and_hidden_states_one_after_the_other():
    model = optimize(compress(tiny_bert(attn_implementation="eager")))
    arguments = {"input_ids": ids(), "attention_mask": MASKS["right"]}
    states, attentions = {"output_hidden_states": True}, {"output_attentions": True}
    want = model(**arguments, **states).hidden_states, model(**arguments, **attentions).attentions
    both = model(**arguments, **states, **attentions)
    assert_equal_where_visible(both.hidden_states[1], want[0][1], MASKS["right"])
    torch.testing.assert_close(both.attentions, want[1], rtol=1e-4, atol=1e-5)
    again = model(**arguments, **states)
    assert again.get("attentions") is None
    torch.testing.assert_close(again.hidden_states, want[0], rtol=0, atol=0)


@torch.no_grad()
def test_one_native_call_again_after_hidden_states(pair, monkeypatch):
    _, model = pair
    want = model(input_ids=ids()).last_hidden_state
    model(input_ids=ids(), output_hidden_states=True)
    calls = []
    encoder = model.encoder.forward.engine.encoder
    run = encoder.run_
    monkeypatch.setattr(encoder, "run_", lambda *args: calls.append(args[2]) or run(*args))
    assert model(input_ids=ids()).last_hidden_state.equal(want)
    assert calls == [slice(None)]


WITHIN = ["embeddings", "encoder", "encoder.layer.0", "encoder.layer.1.output.dense", "pooler"]


@torch.no_grad()
@pytest.mark.parametrize("where", WITHIN)
@pytest.mark.parametrize("kind", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks_are_called_until_they_are_removed(pair, where, kind):
    before, model = pair
    want = before(input_ids=ids())[0]
    model(input_ids=ids())
    called = []
    hook = getattr(model.get_submodule(where), kind)(lambda *args: called.append(args[0]))
    torch.testing.assert_close(model(input_ids=ids())[0], want, rtol=1e-4, atol=1e-5)
    assert called == [model.get_submodule(where)]
    hook.remove()
    torch.testing.assert_close(model(input_ids=ids())[0], want, rtol=1e-4, atol=1e-5)
    assert len(called) == 1


@torch.no_grad()
@pytest.mark.parametrize("by_config", [False, True], ids=["argument", "config"])
def test_a_plain_tuple(pair, by_config):
    arguments = {} if by_config else {"return_dict": False}
    found = []
    for model in pair:
        model.config.return_dict = not by_config
        found.append(model(input_ids=ids(), **arguments))
    assert isinstance(found[1], tuple)
    torch.testing.assert_close(found[1][:2], found[0][:2], rtol=1e-4, atol=1e-5)


def test_inputs_that_record_gradients_are_refused(pair):
    embeddings = torch.randn(2, 6, 32, requires_grad=True)
    with pytest.raises(RuntimeError, match="records gradients; expected torch.no_grad"):
        pair[1](inputs_embeds=embeddings)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_any_mode_of_autograd(pair, mode):
    with torch.no_grad():
        want = pair[0](input_ids=ids())[0]
    with mode():
        got = pair[1](input_ids=ids())[0]
    assert not got.requires_grad
    torch.testing.assert_close(got.clone(), want, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_autocast_changes_nothing(pair):
    want = pair[1](input_ids=ids())[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert pair[1](input_ids=ids())[0].equal(want)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8], ids=str)
def test_threads_change_nothing(threads, dtype):
    model = optimize(compress(tiny_bert()), dtype)
    found = []
    for count in (1, 2):
        threads(count)
        found.append(model(input_ids=ids(20), attention_mask=ids(20) > 20)[0])
    assert found[1].equal(found[0])


def test_concurrent_calls(threads):
    threads(2)
    model = optimize(compress(tiny_bert()))
    batches = [ids(rows) for rows in (2, 3, 7, 20)]
    want = [model(input_ids=batch)[0] for batch in batches]

    def call(i):
        return model(input_ids=batches[i % 4])[0].equal(want[i % 4])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(call, range(100)))


@pytest.mark.parametrize("where", ["", "encoder", "encoder.layer.1.output.dropout"])
def test_training_is_refused(pair, where):
    pair[1].get_submodule(where).train()
    with pytest.raises(RuntimeError, match=r"in training mode; .* optimized for inference"):
        pair[1](input_ids=ids())


def test_a_layer_in_training_is_refused(pair):
    layer = pair[1].encoder.layer[0].train()
    with pytest.raises(RuntimeError, match=r"BertLayer: in training mode"):
        layer(torch.randn(3, 9, 32))


@torch.no_grad()
@pytest.mark.parametrize("mask", MORE_THAN_PADDING.values(), ids=MORE_THAN_PADDING)
def test_masks_that_are_more_than_padding_are_left_to_the_model(pair, mask):
    want, got = (model(ids(), mask)[0] for model in pair)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_layer_with_such_a_mask(pair):
    x, mask = torch.randn(3, 9, 32), MORE_THAN_PADDING["causal"]
    want, got = (model.encoder.layer[1](x, mask) for model in pair)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_compiled_it_calls_hooks(pair):
    before, after = pair
    compiled: Any = torch.compile(after, backend="eager")
    compiled(ids())
    for model in pair:
        model.encoder.layer[1].output.register_forward_hook(lambda module, x, y: y + x[1])
    torch.testing.assert_close(compiled(ids())[0], before(ids())[0], rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("size", [(9, 32), (2, 3, 9, 32)])
def test_states_of_other_dimensions_run_the_encoders_own_forward(size):
    x = torch.randn(size)
    want, got = (m.encoder(x)[0] for m in (compress(tiny_bert()), optimize(compress(tiny_bert()))))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_in_the_workers_of_a_data_loader(start):
    model = optimize(compress(tiny_bert()))
    model(input_ids=ids(64, 16))  # starts all threads, which a forked process lacks
    embed = Embed(model)
    rows: Any = list(ids())
    want = embed(rows)
    loader = DataLoader(
        rows, 2, collate_fn=embed, num_workers=2, multiprocessing_context=start, timeout=60
    )
    torch.testing.assert_close(torch.cat(list(loader)), want, rtol=1e-5, atol=1e-6)


class Embed:
    def __init__(self, model):
        self.model = model

    @torch.no_grad()
    def __call__(self, rows):
        return self.model(input_ids=torch.stack(rows))[0]
