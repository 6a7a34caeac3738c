"""Plain calls of a whole model, which run none of transformers' own forwards in between."""

import inspect

import pytest
import torch

from lada_ops import optimize
from tests.engine.inputs import MASKS, assert_equal_where_visible, ids, mask_of
from tests.engine.models import KNOWN, compressed

PLAIN = {
    "ids": {},
    "a mask": {"attention_mask": MASKS["right"]},
    "a mask of floats": {"attention_mask": MASKS["right"].float()},
    "pairs": {"token_type_ids": mask_of("000011111", "001111111", "000000001")},
    "positions": {"position_ids": torch.arange(9)[None] + 3},
    "embeddings": {"input_ids": None, "inputs_embeds": torch.empty(0)},
    "inactive arguments": {"return_dict": True, "use_cache": None, "output_attentions": False},
}

EMBEDDED = {"token_type_ids", "position_ids"}


@pytest.fixture(params=[name for name in KNOWN if name != "tokens"])
def pair_of_each(request):
    """`pair` of each architecture."""
    return compressed(request.param).base_model, optimize(compressed(request.param)).base_model


@torch.no_grad()
@pytest.mark.parametrize("arguments", PLAIN.values(), ids=PLAIN)
def test_plain_calls_do_not_run_the_models_own_forward(pair_of_each, arguments, monkeypatch):
    before, after = pair_of_each
    inputs = {"input_ids": ids()} | arguments
    if arguments.keys() & EMBEDDED - {*after.forward.architecture.inputs}:
        pytest.skip("its embeddings have no such argument")
    if "inputs_embeds" in inputs:
        inputs["inputs_embeds"] = torch.randn(3, 9, before.get_input_embeddings().embedding_dim)
    want = before(**inputs)
    monkeypatch.delattr(type(after), "forward")
    got = after(**inputs)
    assert type(got) is type(want)
    assert got.keys() == want.keys()
    assert_equal_where_visible(got[0], want[0], arguments.get("attention_mask"))
    torch.testing.assert_close(got[1:], want[1:], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_positional_arguments(pair):
    mask, types = MASKS["right"], PLAIN["pairs"]["token_type_ids"]
    want, got = (model(ids(), mask, types) for model in pair)
    assert_equal_where_visible(got[0], want[0], mask)
    torch.testing.assert_close(got[1], want[1], rtol=1e-4, atol=1e-5)


def test_the_signature_is_kept(pair):  # as sentence-transformers does
    before, after = (inspect.signature(model.forward).parameters for model in pair)
    assert list(after)[:5] == list(before)[:5]


@pytest.mark.parametrize(
    "inputs", [{}, {"input_ids": ids(), "inputs_embeds": torch.ones(3, 9, 32)}]
)
def test_no_input_or_two_raise_transformers_own_error(pair, inputs):
    with pytest.raises(ValueError, match="exactly one of input_ids or inputs_embeds"):
        pair[1](**inputs)
