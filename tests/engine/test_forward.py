import pytest
import torch

import lada_ops
from lada_ops import optimize
from lada_ops.engine.forward import visible_positions
from tests.tiny_encoders import tiny_bert

EACH = ["sdpa", "eager"]


def ids(rows=3, length=9):
    return torch.randint(5, 60, (rows, length), generator=torch.Generator().manual_seed(0))


def mask_of(*rows):
    return torch.tensor([[int(c) for c in row] for row in rows])


MASKS = {
    "none": None,
    "all ones": mask_of("111111111", "111111111", "111111111"),
    "right": mask_of("111111111", "111100000", "100000000"),
    "left": mask_of("111111111", "000011111", "000000001"),
    "holes": mask_of("101010101", "011101110", "111111111"),
}


@pytest.fixture(params=EACH)
def pair(request):
    """A compressed model, and what `optimize` makes of the same one."""
    made = []
    for _ in range(2):
        model = tiny_bert(attn_implementation=request.param)
        lada_ops.compress(model, lada_ops.plan(model, 2, "low_rank"), quiet=True)
        made.append(model)
    return made[0], optimize(made[1])


def assert_equal_where_seen(got, want, mask):
    seen = torch.ones(want.shape[:2], dtype=torch.bool) if mask is None else mask.bool()
    torch.testing.assert_close(got[seen], want[seen], rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_any_mask(pair, mask):
    before, after = (model(input_ids=ids(), attention_mask=mask)[0] for model in pair)
    assert_equal_where_seen(after, before, mask)
    if mask is not None:
        assert not after[mask == 0].any()


@torch.no_grad()
def test_a_row_that_is_hidden_altogether_leaves_the_others(pair):
    mask = mask_of("111111111", "000000000", "111110000")
    before, after = (model(input_ids=ids(), attention_mask=mask)[0] for model in pair)
    assert_equal_where_seen(after, before, mask)
    assert not after[1].any()


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
        assert_equal_where_seen(after, before, mask)


@torch.no_grad()
def test_attention_weights():
    models = []
    for _ in range(2):
        model = tiny_bert(attn_implementation="eager")
        lada_ops.compress(model, lada_ops.plan(model, 2, "low_rank"), quiet=True)
        models.append(model)
    optimize(models[1])
    before, after = (model(input_ids=ids(), output_attentions=True).attentions for model in models)
    assert len(after) == 2
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_one_call_again_once_hidden_states_were_looked_at(pair, monkeypatch):
    _, model = pair
    want = model(input_ids=ids()).last_hidden_state
    model(input_ids=ids(), output_hidden_states=True)
    calls = []
    encoder = model.encoder.forward.encoder
    run = encoder.run_
    monkeypatch.setattr(encoder, "run_", lambda *args: calls.append(args[2]) or run(*args))
    assert model(input_ids=ids()).last_hidden_state.equal(want)
    assert calls == [slice(None)]


@torch.no_grad()
@pytest.mark.parametrize("where", ["encoder.layer.0", "encoder.layer.1.output.dense"])
@pytest.mark.parametrize("kind", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks_of_the_user_are_called(pair, where, kind):
    before, model = pair
    seen = []
    getattr(model.get_submodule(where), kind)(lambda *args: seen.append(args[0]))
    got, want = (m(input_ids=ids())[0] for m in (model, before))
    assert seen == [model.get_submodule(where)]
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_plain_tuple(pair):
    before, after = (model(input_ids=ids(), return_dict=False) for model in pair)
    assert isinstance(after, tuple)
    torch.testing.assert_close(after[0], before[0], rtol=1e-4, atol=1e-5)


def test_inputs_that_record_gradients_are_refused(pair):
    embeddings = torch.randn(2, 6, 32, requires_grad=True)
    with pytest.raises(RuntimeError, match="records gradients; expected torch.no_grad"):
        pair[1](inputs_embeds=embeddings)


def test_training_is_refused(pair):
    pair[1].train()
    with pytest.raises(RuntimeError, match=r"in training mode; .* optimized for inference"):
        pair[1](input_ids=ids())


def test_a_causal_mask_is_refused(pair):
    causal = torch.ones(9, 9, dtype=torch.bool).tril()[None, None].expand(3, 1, 9, 9)
    with pytest.raises(ValueError, match="differs from query to query"):
        pair[1].encoder(torch.randn(3, 9, 32), causal)


class TestVisiblePositions:
    WANT = torch.tensor([[True, True, False], [True, False, False]])

    @pytest.mark.parametrize(
        "mask",
        [
            WANT,
            WANT.long(),
            WANT[:, None, None],
            WANT[:, None, None].expand(2, 1, 3, 3),
            torch.where(WANT, 0.0, float("-inf"))[:, None, None],
            torch.where(WANT, 0.0, torch.finfo(torch.float32).min)[:, None, None].expand(
                2, 1, 3, 3
            ),
        ],
        ids=["bool", "int", "4-D", "expanded", "-inf", "smallest"],
    )
    def test_any_form(self, mask):
        assert visible_positions(mask, 2, 3).equal(self.WANT)

    def test_one_row_for_all(self):
        assert visible_positions(self.WANT[:1], 4, 3).equal(self.WANT[:1].expand(4, 3))

    @pytest.mark.parametrize("shape", [(2, 4), (3, 3), (3,), (2, 2, 3, 3), (2, 1, 2, 3)], ids=str)
    def test_another_shape_is_refused(self, shape):
        with pytest.raises(ValueError, match=r"attention_mask .*; expected \(2, 1, 3, 3\)"):
            visible_positions(torch.ones(shape), 2, 3)
