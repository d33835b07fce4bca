"""Laws of the split of a long passage: windows cover it, no short answer is cut, one window = no windows."""

from collections import Counter

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jieyue.data.qa_files import Passage, Question
from jieyue.data.windows import Tokens, candidates, windows
from jieyue.decoding.vote import merge_windows, vote
from jieyue.errors import InputError

splits = st.tuples(st.integers(0, 200), st.integers(1, 40), st.integers(0, 39)).filter(lambda s: s[2] < s[1])


def cut_runs(ranges, num_tokens, length):
    """Runs of ``length`` tokens that lie whole in no window."""
    return [at for at in range(num_tokens - length + 1) if not any(a <= at and at + length <= b for a, b in ranges)]


@given(splits)
def test_windows_cover_and_cut_no_short_run(split):
    num_tokens, capacity, overlap = split
    ranges = windows(num_tokens, capacity, overlap)
    assert all(0 < stop - first <= capacity for first, stop in ranges) or num_tokens == 0
    assert {at for first, stop in ranges for at in range(first, stop)} == set(range(num_tokens))
    for length in range(1, overlap + 2):
        assert cut_runs(ranges, num_tokens, length) == []
    assert len(ranges) == 1 or num_tokens > capacity


def test_less_overlap_is_caught():
    """The broken twin: neighbours that share one token fewer cut a run of overlap + 1."""
    assert cut_runs(windows(50, 10, 3), 50, 5) and cut_runs(windows(50, 10, 2), 50, 4)


def test_overlap_must_leave_progress():
    with pytest.raises(InputError, match="overlap=4"):
        windows(10, 4, 4)


def question_of(num_tokens, start, end):
    text = "".join(chr(0x4E00 + at) for at in range(num_tokens))
    ids = numpy.arange(num_tokens, dtype=numpy.int32) + 10
    tokens = Tokens(ids, numpy.arange(num_tokens), numpy.arange(num_tokens) + 1)
    golds = (text[start:end],) if end > start else ()
    spans = ((start, end),) if end > start else ()
    return Question("q", "?", (Passage(text, spans),), golds), tokens


@given(st.integers(1, 120), st.integers(0, 119), st.integers(1, 8))
def test_every_answer_that_the_overlap_allows_is_a_target(num_tokens, start, length):
    start = min(start, num_tokens - 1)
    end = min(start + length, num_tokens)
    question, tokens = question_of(num_tokens, start, end)
    counts = Counter()
    answered, empty = candidates(question, [tokens], 20, 8, 10, counts)
    assert answered and counts["answers_cut_by_windows"] == 0 and counts["answers_off_token_borders"] == 0
    for one in answered:
        assert one.first <= start and end <= one.stop
        assert one.answer.tolist() == tokens.ids[start:end].tolist()
    assert len(answered) + len(empty) == len(windows(num_tokens, 20, 8))


scores = st.lists(st.dictionaries(st.sampled_from("abcd"), st.floats(0.01, 1)), min_size=1, max_size=6)


@given(scores)
def test_vote_is_the_articles_formula(passages):
    result = dict(vote(passages))
    for answer in {key for passage in passages for key in passage}:
        own = [passage[answer] for passage in passages if answer in passage]
        assert result[answer] == pytest.approx(sum(s * s for s in own) / (sum(own) + 1), rel=1e-12)
    assert list(result.values()) == sorted(result.values(), reverse=True)


@given(scores)
def test_windows_merge_in_any_grouping(passages):
    """Maximum is associative: windows of windows give what windows give, and one window gives itself."""
    pairs = [pair for passage in passages for pair in passage.items()]
    whole = merge_windows(pairs)
    half = len(pairs) // 2
    parts = [*merge_windows(pairs[:half]).items(), *merge_windows(pairs[half:]).items()]
    assert merge_windows(parts) == whole
    assert merge_windows(passages[0].items()) == passages[0]


def test_voting_over_windows_is_caught():
    """The broken twin: were windows to vote, an answer seen in two windows of one passage would gain by it."""
    one_passage = merge_windows([("a", 0.5), ("a", 0.4)])
    assert dict(vote([one_passage]))["a"] != pytest.approx(dict(vote([{"a": 0.5}, {"a": 0.4}]))["a"])
