"""The prefix mask from two bands: every key is in one of them, so merged they are attention over source and past."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from jieyue.attention import attend
from jieyue.hf.prefix import additive_mask, prefix_attention

MODULE = torch.nn.Module()


def definition(q, k, v, source, kept):
    """Softmax over an explicit mask; a query that sees no key gives zeros."""
    n, m = q.shape[2], k.shape[2]
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    shown = torch.ones(n, m, dtype=torch.bool).tril(m - n)[None]
    if source is not None:
        shown = shown | source[:, None, :]
    shown = (shown & kept[:, None, :])[:, None]
    scores = (q @ k.transpose(2, 3) * q.shape[3] ** -0.5).masked_fill(~shown, -torch.inf)
    weights = scores.softmax(-1).where(shown.any(-1, keepdim=True), torch.zeros(()).double())
    return (weights.nan_to_num() @ v).transpose(1, 2)


def drawn(data, new, seen, heads=4, groups=2):
    q = torch.randn(2, heads, new, 6, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(2, groups, seen, 6, dtype=torch.float64, requires_grad=True) for _ in range(2))
    lengths = torch.tensor([data.draw(st.integers(0, seen)) for _ in range(2)])
    source = torch.arange(seen) < lengths[:, None]
    kept = torch.tensor([[data.draw(st.booleans()) for _ in range(seen)] for _ in range(2)])
    return q, k, v, source, kept


@settings(max_examples=30)
@given(st.data(), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_two_bands_are_the_mask(data, seen, seed):
    torch.manual_seed(seed)
    q, k, v, source, kept = drawn(data, seen, seen)
    found, none = prefix_attention(MODULE, q, k, v, kept, prefix_source=source)
    expected = definition(q, k, v, source, kept)
    assert none is None and torch.allclose(found, expected, rtol=0, atol=1e-12)
    weights = torch.randn_like(expected)
    grads = torch.autograd.grad((found * weights).sum(), (q, k, v))
    for grad, other in zip(grads, torch.autograd.grad((expected * weights).sum(), (q, k, v)), strict=True):
        assert grad.isfinite().all() and torch.allclose(grad, other.nan_to_num(), rtol=0, atol=1e-11)


def test_the_broken_twins_are_noticed():
    q = torch.randn(1, 2, 8, 4, dtype=torch.float64)
    kept, source = torch.ones(1, 8, dtype=torch.bool), torch.arange(8)[None] < 5
    expected = definition(q, q, q, source, kept)
    causal = attend(q, q, q, "causal(full())").transpose(1, 2)  # forgets the source ahead
    assert (causal - expected).abs().max() > 1e-3
    shown = (additive_mask(source, kept, 8, 8, q) == 0).double()
    added = (q @ q.transpose(2, 3) * 0.5 + shown).softmax(-1) @ q  # what eager attention does with a boolean mask
    assert (added.transpose(1, 2) - expected).abs().max() > 1e-3


@given(st.data(), st.integers(1, 4), st.integers(0, 8))
@settings(max_examples=20)
def test_written_tokens_behind_a_cache(data, new, before):
    q, k, v, _, kept = drawn(data, new, before + new)
    found, _ = prefix_attention(MODULE, q, k, v, kept, is_causal=True)
    assert torch.allclose(found, definition(q, k, v, None, kept), rtol=0, atol=1e-12)


@given(st.data(), st.integers(1, 9))
@settings(max_examples=20)
def test_the_additive_mask_says_the_same(data, seen):
    q, k, v, source, kept = drawn(data, seen, seen)
    kept[:, 0] = True
    k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    for num_new in {seen, 1}:
        rows = q[:, :, seen - num_new :]
        mask = additive_mask(source, kept, num_new, seen, q)
        assert mask.shape == (2, 1, num_new, seen) and mask.dtype == torch.float64
        scores = rows @ k.transpose(2, 3) * 6**-0.5 + mask
        assert torch.allclose(
            (scores.softmax(-1) @ v).transpose(1, 2), definition(rows, k, v, source, kept), atol=1e-12
        )


class Largest(TorchDispatchMode):
    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        for one in out if isinstance(out, tuple | list) else [out]:
            self.numel = max(self.numel, one.numel() if isinstance(one, torch.Tensor) else 0)
        return out


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_no_matrix_of_queries_times_keys(dropout):
    length = 2048
    q = torch.randn(1, 2, length, 8, requires_grad=True)
    source = torch.arange(length)[None] < 700
    with Largest() as largest:
        out, _ = prefix_attention(MODULE, q, q, q, None, dropout=dropout, prefix_source=source)
        out.sum().backward()
    assert largest.numel < length * length // 8
