"""Arguments of forward, known to an engine or not: each has the effect it has in the model."""

import copy
import functools
import inspect
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.utils.generic import TransformersKwargs

from lada_ops import optimize
from tests.engine.inputs import MASKS, ids
from tests.engine.models import KNOWN, compressed, fused

ROWS, LENGTH, FEATURES, HEADS = 3, 9, 32, 2
PADDED = MASKS["right"]
LATER = torch.arange(LENGTH)[None] + 3


def randn(*size):
    return torch.randn(size, generator=torch.Generator().manual_seed(1))


def cache():
    """Key-value cache of two layers, with 3 tokens."""
    past = DynamicCache()
    keys, values = randn(2, ROWS, HEADS, 3, FEATURES // HEADS)
    for layer in range(2):
        past.update(keys, values, layer)
    return past


def rotary(x):
    return x.cos().repeat(1, 1, 2), x.sin().repeat(1, 1, 2)


def causal(dtype):
    hidden = torch.ones(LENGTH, LENGTH).triu(1).bool().expand(ROWS, 1, LENGTH, LENGTH)
    return ~hidden if dtype == torch.bool else torch.zeros(hidden.shape).masked_fill(hidden, -1e9)


STATES = {"hidden_states": lambda: randn(ROWS, LENGTH, FEATURES)}
SCORES = {  # masks that are added to the scores
    "causal": lambda: causal(torch.bool),
    "causal, added": lambda: causal(torch.float32),
    "biases": lambda: -PADDED[:, None, None].float(),
    "-100": lambda: (PADDED[:, None, None] - 1) * 100.0,
    "padding": lambda: PADDED[:, None, None].bool(),
    "padding, added": lambda: (PADDED[:, None, None] - 1) * 1e9,
}
MASK = {  # of tokens
    **SCORES,
    "tokens": lambda: PADDED,
    "floats": lambda: PADDED * 0.5,
    "none": lambda: None,
}
FLAG = {"true": lambda: True, "false": lambda: False}
LENGTHS = {"tensor": lambda: torch.tensor([0, 4, 9, 27], dtype=torch.int32)}
VALUES: dict[str, dict[str, Any]] = {
    "input_ids": {"ids": ids},
    "inputs_embeds": {"floats": lambda: randn(ROWS, LENGTH, FEATURES)},
    "attention_mask": MASK,
    "token_type_ids": {"ones": lambda: torch.ones(ROWS, LENGTH, dtype=torch.long)},
    "position_ids": {"later": lambda: LATER, "plain": lambda: torch.arange(LENGTH)[None]},
    "position_bias": {"some": lambda: randn(ROWS, HEADS, LENGTH, LENGTH), "none": lambda: None},
    "position_embeddings": {"some": lambda: rotary(randn(1, LENGTH, 8)), "none": lambda: None},
    "encoder_hidden_states": STATES,
    "encoder_attention_mask": {"tokens": lambda: torch.ones(ROWS, LENGTH)},
    "past_key_values": {"of 3 tokens": cache, "empty": DynamicCache},
    "use_cache": FLAG,
    "output_attentions": FLAG,
    "output_hidden_states": FLAG,
    "return_dict": FLAG,
    # keywords passed on to attention
    "output_router_logits": FLAG,
    "num_items_in_batch": {"tensor": lambda: torch.tensor(3)},
    "cu_seq_lens_q": LENGTHS,
    "cu_seq_lens_k": LENGTHS,
    "seq_idx": {"tensor": lambda: torch.zeros(ROWS, LENGTH, dtype=torch.int32)},
    "max_length_q": {"number": lambda: 5},
    "max_length_k": {"number": lambda: 5},
    "is_causal": FLAG,
    "of_a_version_to_come": {"tensor": lambda: torch.ones(2)},
}
BY_KEYWORD = [*TransformersKwargs.__annotations__, "is_causal", "of_a_version_to_come"]
ENGINES = {"native": optimize, "fused": fused}


@functools.cache
def pair(name, engine):
    before = compressed(name).base_model
    before.set_attn_implementation("sdpa")
    return before, ENGINES[engine](copy.deepcopy(before))


def parts(model):
    """The model, its encoder where that is a module of its own, and the second layer."""
    modules = dict(model.named_modules())
    found = {"model": "", "encoder": "encoder", "layer": "encoder.layer.1"}
    if "transformer" in modules:
        found |= {"encoder": "transformer", "layer": "transformer.layer.1"}
    if "layers" in modules:
        found = {"model": "", "layer": "layers.1"}
    return found


def arguments(name):
    """Pairs of part and argument: those of the part's signature, and further keywords."""
    model = compressed(name).base_model
    for part, path in parts(model).items():
        parameters = inspect.signature(type(model.get_submodule(path)).forward).parameters
        named = [n for n, p in parameters.items() if p.kind != p.VAR_KEYWORD and n != "self"]
        for argument in dict.fromkeys([*named, *BY_KEYWORD]):
            if argument != "hidden_states":
                yield part, argument


OWN = {  # others are copies
    **dict.fromkeys(["bert", "distilbert", "mpnet", "modernbert"], []),
    **dict.fromkeys(["roberta", "electra"], [pytest.mark.exhaustive]),  # BERT's code, renamed
}
CASES = [
    pytest.param(name, part, argument, value, marks=marks, id=f"{name}-{part}-{argument}-{value}")
    for name, marks in OWN.items()
    for part, argument in arguments(name)
    for value in VALUES.get(argument, ())
]


def call(model, part, argument, value):
    """Outputs of a part, or the error that it raised."""
    module = model.get_submodule(parts(model)[part])
    given = {"input_ids": ids()} if part == "model" else {"hidden_states": randn(3, 9, 32)}
    if argument == "inputs_embeds":
        given = {}
    try:
        with torch.no_grad():
            return module(**given, **{argument: value()})
    except Exception as error:
        return error


def assert_alike(got, want, hidden):
    """Assert equal outputs, at visible positions only if `hidden`."""
    assert isinstance(got, Exception) == isinstance(want, Exception), (got, want)
    if isinstance(want, Tensor):
        if hidden and want.shape[:2] == PADDED.shape:
            got, want = got[PADDED.bool()], want[PADDED.bool()]
        if not (hidden and want.ndim == 4):  # attention weights of hidden queries
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    elif isinstance(want, dict):
        assert type(got) is type(want)
        assert got.keys() == want.keys()
        for name, value in want.items():
            assert_alike(got[name], value, hidden)
    elif isinstance(want, tuple):
        assert isinstance(got, tuple)
        for one, other in zip(got, want, strict=True):
            assert_alike(one, other, hidden)
    else:
        assert type(got) is type(want)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("name", "part", "argument", "value"), CASES)
def test_an_argument_has_the_effect_it_has_in_the_model(name, part, argument, value, engine):
    before, after = pair(name, engine)
    want, got = (call(m, part, argument, VALUES[argument][value]) for m in (before, after))
    hidden = argument == "attention_mask" and ("padding" in value or value in ("tokens", "floats"))
    assert_alike(got, want, hidden)


@pytest.mark.parametrize("name", KNOWN)
def test_values_has_every_argument_of_transformers(name):
    assert {argument for _, argument in arguments(name)} - VALUES.keys() == set()
