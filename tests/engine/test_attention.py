import pytest
import torch
import torch.nn.functional as F

from lada_ops.engine.attention import (
    PaddedAttention,
    VarlenAttention,
    apply_rotary,
    supports_varlen,
)
from lada_ops.engine.masks import window_mask

HEADS = 3


def drawn(*shape):
    return torch.randn(3, *shape, HEADS * 8, dtype=torch.float64)


def reference(q, k, v):
    """Attention of one sequence (length, features), head by head."""
    parts = (t.unflatten(-1, (HEADS, -1)).unbind(1) for t in (q, k, v))
    return torch.cat(
        [(a @ b.T / a.shape[1] ** 0.5).softmax(-1) @ c for a, b, c in zip(*parts, strict=True)], -1
    )


@pytest.mark.parametrize("lengths", [[1], [5], [1, 7, 2], [3, 3], []], ids=str)
def test_varlen_sequences_do_not_see_each_other(lengths):
    q, k, v = drawn(sum(lengths))
    starts = F.pad(torch.tensor(lengths, dtype=torch.int32).cumsum(0), (1, 0)).int()
    got = VarlenAttention(HEADS, starts, max(lengths, default=0))(q, k, v)
    parts = zip(*(t.split(lengths) for t in (q, k, v)), strict=True)
    want = torch.cat([q[:0], *(reference(*one) for one in parts)])
    torch.testing.assert_close(got, want)


def test_padded():
    q, k, v = drawn(2, 5)
    want = torch.stack([reference(*one) for one in zip(q, k, v, strict=True)])
    torch.testing.assert_close(PaddedAttention(HEADS, None)(q, k, v), want)


def test_padded_with_a_mask():
    q, k, v = drawn(2, 5)
    mask = torch.tensor([[1, 1, 1, 0, 0]]).bool()
    got = PaddedAttention(HEADS, mask)(q, k, v)
    want = torch.stack([reference(a, b[:3], c[:3]) for a, b, c in zip(q, k, v, strict=True)])
    torch.testing.assert_close(got, want)


def test_apply_rotary_multiplies_complex_numbers():
    x, angle = torch.randn(5, 8, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    got = apply_rotary(x, torch.cat([angle.cos(), angle.sin()], -1))
    turned = torch.complex(*x.chunk(2, -1)) * torch.exp(1j * angle)
    torch.testing.assert_close(got, torch.cat([turned.real, turned.imag], -1))


def test_apply_rotary_rounds_once():
    x, cos_sin = torch.randn(5, 8).bfloat16(), torch.randn(5, 8)
    got = apply_rotary(x, cos_sin)
    torch.testing.assert_close(
        got, apply_rotary(x.double(), cos_sin.double()).bfloat16(), rtol=0, atol=0
    )


@pytest.mark.parametrize("window", [None, 1, 2])
def test_varlen_equals_padded_with_rope_and_windows(window):
    q, k, v = drawn(2, 5)
    cos_sin = torch.randn(5, 8, dtype=torch.float64)
    mask = None if window is None else window_mask(window, 5, None, q.device)
    want = PaddedAttention(HEADS, mask, cos_sin)(q, k, v)
    starts = torch.tensor([0, 5, 10], dtype=torch.int32)
    varlen = VarlenAttention(HEADS, starts, 5, cos_sin.repeat(2, 1), window)
    got = varlen(*(t.flatten(0, 1) for t in (q, k, v)))
    torch.testing.assert_close(got, want.flatten(0, 1))
    assert not torch.allclose(want, PaddedAttention(HEADS, mask)(q, k, v))


def test_views_of_a_merged_projection():
    whole = torch.randn(2, 5, 3 * HEADS * 8, dtype=torch.float64)
    q, k, v = whole.chunk(3, -1)
    want = PaddedAttention(HEADS, None)(q.contiguous(), k.contiguous(), v.contiguous())
    torch.testing.assert_close(PaddedAttention(HEADS, None)(q, k, v), want)


def test_the_cpu_supports_varlen_for_any_size():
    assert supports_varlen(torch.empty(4, 33), 3)
