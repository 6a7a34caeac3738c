"""Inputs and masks of the models, and a comparison of outputs at visible positions."""

import torch


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
_BY_HEAD = torch.ones(3, 2, 9, 9).bool()
_BY_HEAD[:, 1] = _BY_HEAD[:, 1].tril()
MORE_THAN_PADDING = {
    "causal": torch.ones(9, 9).tril().bool().expand(3, 1, 9, 9),
    "added": torch.zeros(3, 1, 9, 9).masked_fill(torch.ones(9, 9).triu(2).bool(), -1e9),
    "by head": _BY_HEAD,
}


def assert_equal_where_visible(got, want, mask):
    visible = torch.ones(want.shape[:2], dtype=torch.bool) if mask is None else mask.bool()
    torch.testing.assert_close(got[visible], want[visible], rtol=1e-4, atol=1e-5)
