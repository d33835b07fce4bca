"""Patterns are sets of offsets: their bands partition them, their text names them, their pairs count their mask."""

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

from jieyue.attention import Band, Pattern, atrous, first, full, global_tokens, local, parse, sparse
from jieyue.attention.lowering import lower
from jieyue.attention.pattern import shown
from jieyue.errors import InputError

OFFSETS = range(-60, 61)
steps = st.sampled_from([1, 2, 3, 4, 6, 8, 12])


@st.composite
def atoms(draw):
    """A one-term pattern and the set it should be, as a predicate."""
    window, step, lo = draw(st.integers(0, 9)), draw(steps), draw(st.integers(-30, 30))
    hi = lo + draw(st.integers(0, 30))
    return draw(
        st.sampled_from(
            [
                (full(), lambda d: True),
                (local(window), lambda d: abs(d) <= window),
                (local(window, step), lambda d: d % step == 0 and abs(d) <= window * step),
                (atrous(step), lambda d: d % step == 0),
                (sparse(step), lambda d: d % step == 0 or abs(d) < step),
                (sparse(step, window), lambda d: d % step == 0 or abs(d) <= window),
                (parse(f"band(1, {lo}, {hi})"), lambda d: lo <= d <= hi),
                (parse(f"band(1, -inf, {hi})"), lambda d: d <= hi),
            ]
        )
    )


@st.composite
def patterns(draw):
    """A pattern of up to three terms, perhaps causal in part or whole, and its set; refused unions are left out."""
    pattern, inside = None, lambda d: False
    for one, within in draw(st.lists(atoms(), min_size=1, max_size=3)):
        if draw(st.booleans()):
            try:
                one = one.causal()
            except InputError:  # a band that lies wholly in the future
                assume(False)
            within = _and_causal(within)
        try:
            pattern = one if pattern is None else pattern | one
        except InputError:
            assume(False)
        inside = _either(inside, within)
    return pattern, inside


def _and_causal(within):
    return lambda d: d >= 0 and within(d)


def _either(a, b):
    return lambda d: a(d) or b(d)


@given(patterns())
def test_bands_partition_the_set(drawn):
    pattern, inside = drawn
    for d in OFFSETS:
        assert sum(d in band for band in pattern.bands) == inside(d), d
        assert (d in pattern) == inside(d)


@given(patterns())
def test_text_goes_both_ways(drawn):
    pattern, _ = drawn
    assert parse(str(pattern)) == pattern
    assert parse(str(pattern).replace("(", " ( ").replace("+", " + ")) == pattern
    assert hash(parse(str(pattern))) == hash(pattern)
    assert parse(str(Pattern(pattern.bands))) == pattern, "text made from bands alone"


sizes = st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(-50, 50))


@given(patterns(), sizes)
@example((sparse(64), None), (16384, 3, 0))
def test_pairs_count_the_mask(drawn, size):
    assert drawn[0].pairs(*size) == drawn[0].mask(*size).sum().item()


def test_pairs_are_closed_form():
    """Sizes whose mask could not exist: the counts written out by hand."""
    n = 10**9
    assert full().pairs(n, n) == n * n
    assert full().causal().pairs(n, n) == n * (n + 1) // 2
    assert local(128).pairs(n, n) == n * 257 - 128 * 129
    assert local(128).causal().pairs(n, n) == n * 129 - 128 * 129 // 2
    assert atrous(1000).pairs(n, n) == n * (n // 1000)
    assert full().pairs(0, 5) == full().pairs(5, 0) == 0


@given(patterns(), sizes)
def test_mask_is_the_definition(drawn, size):
    n, m, q_offset = size
    expected = [[drawn[1](i + q_offset - j) for j in range(m)] for i in range(n)]
    assert drawn[0].mask(n, m, q_offset).tolist() == expected


@given(patterns(), sizes)
def test_lowering_keeps_the_mask(drawn, size):
    n, m, q_offset = size
    i, j = torch.arange(q_offset, q_offset + n), torch.arange(m)
    lowered = lower(drawn[0], n, m, q_offset)
    assert torch.equal(shown(lowered, i, j), drawn[0].mask(n, m, q_offset))
    assert all(band.pairs(n, m, q_offset) > 0 for band in lowered)


@given(patterns(), patterns())
def test_union_and_causal_are_set_operations(a, b):
    try:
        union = a[0] | b[0]
    except InputError:
        assume(False)
    assert all((d in union) == (d in a[0] or d in b[0]) for d in OFFSETS)
    if any(d in union for d in range(200)):
        assert all((d in union.causal()) == (d in union and d >= 0) for d in OFFSETS)
        assert union.causal().causal() == union.causal()


@st.composite
def wholes(draw):
    """A pattern with first keys and global rows, causal in part or whole, and its set of (i, j)."""
    pattern, inside = draw(patterns().map(lambda drawn: (drawn[0], _of_pairs(drawn[1]))))
    for _ in range(draw(st.integers(0, 3))):
        count, rows = draw(st.integers(1, 9)), draw(st.booleans())
        one = global_tokens(count) if rows else first(count)
        within = _first_or_global(count, rows)
        if draw(st.booleans()):
            one, within = one.causal(), _past(within)
        pattern, inside = draw(st.sampled_from([pattern | one, one | pattern])), _both(inside, within)
    if draw(st.booleans()):
        try:
            pattern, inside = pattern.causal(), _past(inside)
        except InputError:
            assume(False)
    return pattern, inside


def _of_pairs(inside):
    return lambda i, j: inside(i - j)


def _first_or_global(count, rows):
    return lambda i, j: j < count or (rows and i < count)


def _past(within):
    return lambda i, j: j <= i and within(i, j)


def _both(a, b):
    return lambda i, j: a(i, j) or b(i, j)


@given(wholes(), sizes)
def test_first_keys_and_global_rows_join_exactly(drawn, size):
    """The mask is the set, the pairs are its size, the parts cut it up, and text goes both ways."""
    (pattern, inside), (n, m, q_offset) = drawn, size
    mask = pattern.mask(n, m, q_offset)
    assert mask.tolist() == [[inside(i + q_offset, j) for j in range(m)] for i in range(n)]
    assert pattern.pairs(n, m, q_offset) == mask.sum()
    assert parse(str(pattern)) == pattern and parse(str(Pattern(pattern.bands, "", *pattern._ends))) == pattern
    found = torch.zeros(n, m, dtype=torch.int64)
    for rows, keys, bands in pattern.parts(n, m, q_offset):
        i, j = torch.arange(*rows) + q_offset, torch.arange(*keys)
        found[slice(*rows), slice(*keys)] += shown(bands, i, j)
    assert torch.equal(found, mask.long()), "every visible pair is in one part"


def test_first_and_global_of_the_articles():
    assert str(first(4) | local(512)) == "first(4)+local(512)" and parse("global(2)") == global_tokens(2)
    assert global_tokens(3).causal() == first(3).causal()
    assert full() | first(4) == full() and first(2) | global_tokens(5) == global_tokens(5)
    assert full().causal() | first(4).causal() == full().causal()
    assert first(2) | first(5) == first(5)
    n = 10**9
    assert (first(4) | local(128)).causal().pairs(n, n) == n * 133 - 128 * 129 // 2 - (0 + 1 + 2 + 3) - 4 * 129
    assert not global_tokens(1).is_causal and first(1).causal().is_causal


def test_defaults_of_the_article():
    assert sparse(32) == local(31) | atrous(32)
    assert str(local(64) | atrous(32)) == "local(64)+atrous(32)"
    assert str(sparse(32).causal()) == "causal(sparse(32))"
    assert local(4) | local(2) == local(4) and str(local(4) | local(2)) == "local(4)"
    assert parse("full") == full() and parse("local(window=3, step=2)") == local(3, 2)
    assert sparse(8, 0) == atrous(8)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("locl(64)", "did you mean local"),
        ("stride(4)", "a term one of full"),
        ("local(64", r"without its \)"),
        ("local(64))", r"without its \("),
        ("local(64)+", "empty term"),
        ("", "empty term"),
        ("local()", "no window"),
        ("local(-1)", "window=-1.*at least 0"),
        ("local(2, 0)", "step=0.*at least 1"),
        ("atrous(0)", "rate=0.*at least 1"),
        ("atrous(x)", "'x' in atrous"),
        ("atrous(2, 3)", "'3' in atrous"),
        ("atrous(inf)", "'inf' in atrous"),
        ("local(1.5)", "'1.5' in local"),
        ("first(0)", "count=0.*at least 1"),
        ("global()", "no count"),
        ("globl(3)", "did you mean global"),
        ("band(4, 1, 3)", "no multiple of 4"),
        ("causal(band(1, -5, -1))", "no offset"),
        ("atrous(4)+atrous(6)", "step 4 and one with step 6"),
        ("local(8)64", "where a term should be"),
    ],
)
def test_wrong_text_is_explained(wrong, says):
    with pytest.raises(InputError, match=says):
        parse(wrong)


@pytest.mark.parametrize("make", [lambda: local(-1), lambda: atrous(0), lambda: local(2.0), lambda: sparse(True)])
def test_wrong_numbers_are_refused(make):
    with pytest.raises(ValueError, match="whole number, at least"):
        make()


def test_patterns_are_values():
    assert len({local(3), parse("local(3)"), atrous(2)}) == 2
    with pytest.raises(AttributeError):
        local(3).bands = ()
    with pytest.raises(InputError, match="no offset"):
        Pattern(())


def test_the_alarm_rings():
    """Broken twins: overlapping bands, and ends that are no multiples of the step, are no pattern."""
    with pytest.raises(InputError, match="share offsets"):
        Pattern(local(4).bands + atrous(8).bands)
    with pytest.raises(InputError, match="multiples of the step"):
        Pattern((Band(4, -3, 5),))
    assert local(4).pairs(50, 50) != local(5).pairs(50, 50)
