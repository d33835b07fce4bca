"""Decoding: step t of a State equals row t of the whole, whatever the pieces in which the tokens came."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jieyue.attention import State, attend, parse
from jieyue.errors import InputError

PATTERNS = ["local(3)", "local(0)", "local(2, 3)", "full()", "atrous(3)", "sparse(4)", "sparse(3, 7)", "band(1, 2, 5)"]


def tokens(n, batch=2, heads=4, groups=2, depth=5, width=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sizes = ((heads, depth), (groups, depth), (groups, width))
    return [torch.randn(batch, h, n, d, generator=generator, dtype=torch.float64) for h, d in sizes]


def decode(state, q, k, v, pieces, key_mask=None):
    """All outputs, tokens fed in pieces of the given lengths."""
    outs, start = [], 0
    for count in pieces:
        part = slice(start, start + count)
        state.append(k[:, :, part], v[:, :, part], None if key_mask is None else key_mask[:, part])
        outs.append(state.read(q[:, :, part]))
        start += count
    return torch.cat(outs, 2)


@settings(max_examples=60)
@given(
    text=st.sampled_from(PATTERNS),
    pieces=st.lists(st.sampled_from([1, 1, 1, 2, 5, 12]), min_size=1, max_size=12),
    slack=st.integers(0, 3),
    masked=st.booleans(),
)
def test_steps_equal_rows(text, pieces, slack, masked):
    n, pattern = sum(pieces), parse(text).causal()
    q, k, v = tokens(n)
    key_mask = (torch.rand(2, n) > 0.3) if masked else None
    state = State(parse(text), slack)
    found = decode(state, q, k, v, pieces, key_mask)
    torch.testing.assert_close(found, attend(q, k, v, pattern, key_mask=key_mask), atol=1e-12, rtol=0)
    assert state.length == n


@pytest.mark.parametrize("text", PATTERNS)
def test_only_the_visible_keys_are_read(text):
    state, (q, k, v) = State(parse(text)), tokens(80)
    for t in range(80):
        decode(state, q[:, :, t:], k[:, :, t:], v[:, :, t:], [1])
        expected = parse(text).causal().pairs(1, t + 1, t)
        assert (state.keys_read if expected else 0) == expected


def test_a_window_has_constant_memory():
    state, (q, k, v) = State(parse("local(7)")), tokens(500)
    decode(state, q, k, v, [1] * 100)
    held = state.nbytes
    assert held == 2 * 2 * 8 * (5 + 3) * 8
    decode(state, q[:, :, 100:], k[:, :, 100:], v[:, :, 100:], [300] + [1] * 100)
    assert state.nbytes == held
    grown = State(parse("sparse(8)"))
    decode(grown, q, k, v, [1] * 500)
    assert grown.nbytes <= 1.3 * 2 * 2 * 500 * (5 + 3) * 8


@pytest.mark.parametrize("text", PATTERNS)
def test_beams_crop_and_saving(text):
    """Rows change places, tokens are taken back, the state is saved and restored: as if it had always been so."""
    pattern, index, n = parse(text).causal(), torch.tensor([1, 1, 0]), 25
    q, k, v = tokens(n)
    other = tokens(n, batch=3, seed=1)
    state = State(pattern, slack=4)
    decode(state, q, k, v, [10, 1, 1, 1, 1, 1])
    state.reorder(index)
    state.crop(12)
    state = State.from_dict(pattern, state.to_dict(), slack=4)
    found = decode(state, *(x[:, :, 12:] for x in other), [1, 2, 10])
    joined = [torch.cat([x[index, :, :12], y[:, :, 12:]], 2) for x, y in zip((q, k, v), other, strict=True)]
    torch.testing.assert_close(found, attend(*joined, pattern)[:, :, 12:], atol=1e-12, rtol=0)


def test_masked_beginnings():
    """Left padding: the padded rows change nothing, and rows that see nothing give zeros."""
    q, k, v = tokens(12)
    key_mask = torch.ones(2, 12, dtype=torch.bool)
    key_mask[1, :5] = False
    found = decode(State(parse("local(2)")), q, k, v, [1] * 12, key_mask)
    assert torch.equal(found[1, :, :5], torch.zeros_like(found[1, :, :5]))
    alone = decode(State(parse("local(2)")), *(x[1:, :, 5:] for x in (q, k, v)), [7])
    torch.testing.assert_close(found[1:, :, 5:], alone, atol=1e-12, rtol=0)


def test_what_is_gone_is_refused():
    q, k, v = tokens(30)
    state = State(parse("local(3)"), slack=2)
    decode(state, q, k, v, [30])
    state.crop(27)
    with pytest.raises(InputError, match=r"crop\(length=25\).*at most 3"):
        state.crop(25)
    with pytest.raises(InputError, match="expected between 0 and the 27"):
        state.crop(28)
    with pytest.raises(InputError, match="from 1 to the 0 tokens"):
        state.read(q[:, :, :1])
    decode(state, q, k, v, [9])
    with pytest.raises(InputError, match="one read for each append"):
        state.read(q[:, :, :9])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda k, v: (k[0], v, None), "k has shape"),
        (lambda k, v: (k, v[:, :, :1], None), "expected .B, G, T, D."),
        (lambda k, v: (k[:, :1], v[:, :1], None), "as in what is held"),
        (lambda k, v: (k.float(), v, None), "k has shape.*float32"),
        (lambda k, v: (k, v, torch.ones(2, 3)), "key_mask has shape"),
    ],
)
def test_what_does_not_fit_is_refused(change, says):
    _, k, v = tokens(2)
    state = State(parse("atrous(2)"))
    state.append(k, v)
    with pytest.raises(ValueError, match=says):
        state.append(*change(k, v))


def test_the_alarm_rings():
    """A broken twin: a ring one token too short must be told from the law."""
    q, k, v = tokens(12)
    state = State(parse("local(3)"))
    state._ring -= 1
    found = decode(state, q, k, v, [1] * 12)
    assert (found - attend(q, k, v, parse("local(3)").causal())).abs().max() > 1e-3
