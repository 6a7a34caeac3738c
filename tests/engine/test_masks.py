import pytest
import torch

from lada_ops.engine.masks import (
    UnsupportedCall,
    add_bias,
    has_gaps,
    sdpa_mask,
    visible_positions,
    window_mask,
)

VISIBLE = torch.tensor([[1, 1, 0], [1, 0, 0]]).bool()
FOUR = VISIBLE[:, None, None]
ADDED = torch.zeros(2, 1, 1, 3).masked_fill(~FOUR, torch.finfo(torch.float32).min)
PADDING = {
    "bool": VISIBLE,
    "ones": VISIBLE.long(),
    "floats": VISIBLE.float(),
    "four dimensions": FOUR,
    "by query": FOUR.expand(2, 1, 3, 3),
    "added": ADDED,
    "added by query": ADDED.expand(2, 1, 3, 3),
    "added, -inf": torch.zeros(2, 1, 1, 3).masked_fill(~FOUR, float("-inf")),
    "added in half": ADDED.clamp(min=-65504).half(),
}
OTHERS = {
    "causal": torch.ones(2, 1, 3, 3).tril().bool(),
    "causal, added": torch.full((2, 1, 3, 3), -1e9).triu(1),
    "by head": torch.ones(2, 4, 3, 3).bool(),
    "whole numbers": FOUR.long(),
    "biases": torch.zeros(2, 1, 1, 3).masked_fill(~FOUR, -100.0),
    "biases, hardly": torch.zeros(2, 1, 1, 3).masked_fill(~FOUR, -9999.0),
    "biases above": FOUR.float(),
    "not a number": torch.full((2, 1, 1, 3), float("nan")),
    "a list": [1, 1, 0],
}
MISFITS = {
    "longer": torch.ones(2, 4),
    "more": torch.ones(3, 3),
    "three dimensions": torch.ones(2, 3, 3),
    "of other queries": torch.ones(2, 1, 2, 3),
    "of other keys": torch.ones(2, 1, 3, 2),
    "one dimension": torch.ones(3),
}


def attended(mask, q, k, v):
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, mask)


@pytest.mark.parametrize("mask", PADDING.values(), ids=PADDING)
def test_visible_positions(mask):
    assert visible_positions(mask, 2, 3).equal(VISIBLE)


def test_one_row_is_expanded():
    assert visible_positions(VISIBLE[:1], 2, 3).equal(VISIBLE[:1].expand(2, 3))


@pytest.mark.parametrize("mask", OTHERS.values(), ids=OTHERS)
def test_other_masks_are_unsupported(mask):
    with pytest.raises(UnsupportedCall):
        visible_positions(mask, 2, 3)


@pytest.mark.parametrize("mask", MISFITS.values(), ids=MISFITS)
def test_other_sizes_are_refused(mask):
    message = r"attention_mask .*; expected \(2, 1, 3, 3\) or \(2, 3\)"
    with pytest.raises(ValueError, match=message):
        visible_positions(mask, 2, 3)
    with pytest.raises(ValueError, match=message):
        sdpa_mask(mask, 2, 3, torch.float32)


@pytest.mark.parametrize("mask", PADDING.values(), ids=PADDING)
def test_sdpa_mask_hides_padding(mask):
    q, k, v = torch.randn(3, 2, 4, 3, 8)
    got = attended(sdpa_mask(mask, 2, 3, q.dtype), q, k, v)
    torch.testing.assert_close(got, attended(FOUR, q, k, v))


@pytest.mark.parametrize("name", ["causal", "causal, added"])
def test_sdpa_mask_may_differ_between_queries(name):
    q, k, v = torch.randn(3, 2, 4, 3, 8)
    got = attended(sdpa_mask(OTHERS[name], 2, 3, q.dtype), q, k, v)
    torch.testing.assert_close(got, attended(OTHERS["causal"], q, k, v))


@pytest.mark.parametrize("name", ["by head", "whole numbers", "a list"])
def test_sdpa_mask_of_unsupported_masks(name):
    with pytest.raises(UnsupportedCall):
        sdpa_mask(OTHERS[name], 2, 3, torch.float32)


def test_a_query_without_keys_sees_all():
    got = sdpa_mask(torch.tensor([[1, 0, 0], [0, 0, 0]]), 2, 3, torch.float32)
    assert got.flatten(1).tolist() == [[True, False, False], [True, True, True]]


@pytest.mark.parametrize(
    ("rows", "gaps"),
    [
        (["1111", "1100", "0011", "0110", "0000", "1000"], False),
        (["1111", "1011"], True),
        (["0101"], True),
        (["1"], False),
    ],
)
def test_has_gaps(rows, gaps):
    assert has_gaps(torch.tensor([[c == "1" for c in row] for row in rows])) is gaps


@pytest.mark.parametrize("name", ["four dimensions", "added", "added, -inf"])
def test_add_bias(name):
    q, k, v, bias = *torch.randn(3, 2, 4, 3, 8), torch.randn(1, 4, 3, 3)
    mask = sdpa_mask(PADDING[name], 2, 3, q.dtype)
    got = attended(add_bias(mask, bias), q, k, v)
    want = attended(bias.masked_fill(~FOUR, float("-inf")), q, k, v)
    torch.testing.assert_close(got, want)


def test_add_bias_without_one_of_them():
    bias = torch.randn(1, 4, 3, 3)
    assert add_bias(FOUR, None) is FOUR
    assert add_bias(None, bias) is bias
    assert add_bias(None, None) is None


@pytest.mark.parametrize("window", [0, 1, 2, 9])
@pytest.mark.parametrize("name", ["none", "four dimensions", "added, -inf"])
def test_window_mask(name, window):
    q, k, v = torch.randn(3, 2, 4, 3, 8)
    at = torch.arange(3)
    near = (at - at[:, None]).abs() <= window
    mask = None if name == "none" else sdpa_mask(PADDING[name], 2, 3, q.dtype)
    got = attended(window_mask(window, 3, mask, q.device), q, k, v)
    want = attended(near if mask is None else FOUR & near, q, k, v)
    sees = (near if mask is None else FOUR & near).any(-1)[..., None].expand(want.shape)
    torch.testing.assert_close(got[sees], want[sees])
    if name != "added, -inf":
        assert got.isfinite().all()
