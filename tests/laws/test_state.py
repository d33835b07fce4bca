"""Decoding: step t of a State equals row t of the whole, whatever the pieces in which the tokens came."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jieyue.attention import State, attend, parse
from jieyue.attention.first_keys import FirstKeys
from jieyue.errors import InputError

PATTERNS = ["local(3)", "local(0)", "local(2, 3)", "full()", "atrous(3)", "sparse(4)", "sparse(3, 7)", "band(1, 2, 5)"]
WITH_FIRST = ["first(4)", "first(1)+local(3)", "first(5)+local(2)", "first(3)+sparse(4)", "first(6)+band(1, 2, 5)"]
PATTERNS += WITH_FIRST


def tokens(n, batch=2, heads=4, groups=2, depth=5, width=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sizes = ((heads, depth), (groups, depth), (groups, width))
    return [torch.randn(batch, h, n, d, generator=generator, dtype=torch.float64) for h, d in sizes]


def decode(state, q, k, v, pieces, key_mask=None, bias=None, **worn):
    """All outputs, tokens fed in pieces of the given lengths; ``bias``: offset_bias of the whole."""
    outs, start = [], 0
    for count in pieces:
        part = slice(start, start + count)
        state.append(k[:, :, part], v[:, :, part], None if key_mask is None else key_mask[:, part])
        if bias is not None:
            rest = (bias.shape[1] + 1) // 2 - start - count
            worn["offset_bias"] = bias[:, rest + start : rest + start + 2 * count + start - 1]
        outs.append(state.read(q[:, :, part], **worn))
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


@settings(max_examples=25)
@given(
    text=st.sampled_from(PATTERNS),
    pieces=st.lists(st.sampled_from([1, 1, 1, 2, 5, 12]), min_size=1, max_size=8),
    masked=st.booleans(),
    capped=st.booleans(),
    sunk=st.booleans(),
    biased=st.sampled_from([0, 1, 4]),
)
def test_steps_wear_what_rows_wear(text, pieces, masked, capped, sunk, biased):
    """Sinks, soft-capping and offset biases: the bias of a step is the part of the whole's that its distances have."""
    n, pattern = sum(pieces), parse(text).causal()
    q, k, v = tokens(n)
    key_mask = (torch.rand(2, n) > 0.3) if masked else None
    worn = {"softcap": 1.5 if capped else None, "sinks": torch.randn(4).double() if sunk else None}
    bias = torch.randn(biased, 2 * n - 1).double() if biased else None
    found = decode(State(parse(text)), q, k, v, pieces, key_mask, bias, **worn)
    expected = attend(q, k, v, pattern, key_mask=key_mask, offset_bias=bias, **worn)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


@settings(max_examples=25)
@given(
    text=st.sampled_from(WITH_FIRST),
    padding=st.lists(st.integers(0, 9), min_size=2, max_size=2),
    pieces=st.lists(st.sampled_from([1, 1, 2, 7, 15]), min_size=3, max_size=8),
    cropped=st.integers(0, 3),
)
def test_first_keys_count_from_each_row_s_first_kept_one(text, padding, pieces, cropped):
    """A left-padded row decodes as it would alone; as ``attend`` with the padding in no segment. A crop in the middle too."""
    n = sum(pieces)
    q, k, v = tokens(n)
    key_mask = torch.arange(n) >= torch.tensor(padding)[:, None]
    state = State(parse(text), 3, from_kept=True)
    found = decode(state, q, k, v, pieces, key_mask)
    segments = key_mask.int() - 1
    expected = attend(q, k, v, parse(text).causal(), segments=segments)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    for b, start in enumerate(padding):
        if start < n:
            alone = decode(State(parse(text)), *(x[b : b + 1, :, start:] for x in (q, k, v)), [1] * (n - start))
            torch.testing.assert_close(found[b : b + 1, :, start:], alone, atol=1e-12, rtol=0)
    back = min(cropped, pieces[-1], n)
    if back:
        state.crop(n - back)
        again = decode(state, *(x[:, :, n - back :] for x in (q, k, v)), [1] * back, key_mask[:, n - back :])
        torch.testing.assert_close(again, expected[:, :, n - back :], atol=1e-12, rtol=0)


@pytest.mark.parametrize("length", [0, 1, 3, 4])
def test_crop_below_the_first_keys(length):
    """What comes after is as if the rest had never been, however long the ring has been running."""
    q, k, v = tokens(30)
    other = tokens(30, seed=3)
    state = State(parse("first(4)+local(2)"))
    decode(state, q, k, v, [30])
    state.crop(length)
    found = decode(state, *(x[:, :, length:] for x in other), [1, 1, 5, 1, 12])
    joined = [
        torch.cat([x[:, :, :length], y[:, :, length:]], 2)[:, :, : length + 20]
        for x, y in zip((q, k, v), other, strict=True)
    ]
    expected = attend(*joined, parse("first(4)+local(2)").causal())[:, :, length:]
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def test_first_keys_cost_constant_memory_and_global_rows_are_refused():
    state, (q, k, v) = State(parse("first(4)+local(7)")), tokens(300)
    decode(state, q, k, v, [1] * 100)
    held = state.nbytes
    decode(state, *(x[:, :, 100:] for x in (q, k, v)), [100] + [1] * 100)
    assert state.nbytes == held and state.keys_read == 12
    with pytest.raises(InputError, match="global tokens, which see later keys"):
        State(parse("global(2)+local(3)"))
    assert State(parse("global(2)+local(3)").causal()).pattern == parse("first(2)+local(3)").causal()


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


def test_the_alarm_rings_for_first_keys_that_count_twice(monkeypatch):
    monkeypatch.setattr(FirstKeys, "behind", lambda *_: None)
    monkeypatch.setattr(FirstKeys, "floor", 0)
    q, k, v = tokens(12)
    found = decode(State(parse("first(2)+local(3)")), q, k, v, [1] * 12)
    assert (found - attend(q, k, v, parse("first(2)+local(3)").causal())).abs().max() > 1e-3
