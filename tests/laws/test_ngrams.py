"""Law: the suffix order allows exactly the n-grams of the window; greedy reading equals the article's, rebuilt at every step;
the best reading is the best of all n-grams, written out.
"""

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jieyue.decoding.constraints import Interval, SuffixOrder, best_slots, read_slots

SEP = 0


def ngrams(tokens, n):
    return {tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)}


def article_reading(tokens, probabilities):
    """The article's decoder, word for word: the set of n-grams anew at every step. Returns (answer, mean probability)."""
    answer, scores = (), []
    for step in probabilities:
        allowed = {SEP} | {gram[-1] for gram in ngrams(tokens, len(answer) + 1) if gram[:-1] == answer}
        token = max(sorted(allowed), key=lambda t: step[t])  # SEP has the lowest id and wins ties
        scores.append(step[token])
        if token == SEP:
            break
        answer += (token,)
    return answer, float(numpy.mean(scores))


texts = st.lists(st.integers(1, 4), max_size=24)
windows = st.tuples(texts, st.integers(0, 24), st.integers(0, 24)).map(
    lambda drawn: (drawn[0], *sorted((min(drawn[1], len(drawn[0])), min(drawn[2], len(drawn[0])))))
)


@given(texts)
def test_suffixes_are_sorted(tokens):
    assert SuffixOrder(tokens).starts.tolist() == sorted(range(len(tokens)), key=lambda i: tokens[i:])


@given(windows, st.lists(st.integers(1, 4), max_size=6))
def test_intervals_hold_exactly_the_windows_ngrams(window, prefix):
    tokens, first, stop = window
    interval = SuffixOrder(tokens).window(first, stop)
    for token in prefix:
        interval = interval.narrow(token)
    n = len(prefix)
    inside = tokens[first:stop]
    occurrences = [first + i for i in range(len(inside) - n) if inside[i : i + n] == prefix]
    assert sorted(interval.places() - n) == occurrences
    assert set(interval.following().tolist()) == {
        gram[-1] for gram in ngrams(inside, n + 1) if list(gram[:-1]) == prefix
    }


def read(order_of, tokens, first, stop, table, search=read_slots):
    at = numpy.array([[step[t] for t in tokens[first:stop]] for step in table]).reshape(len(table), stop - first)
    return search(order_of(tokens).window(first, stop), at, numpy.array([step[SEP] for step in table]), first)


def tables(rng, num_slots):
    return rng.dirichlet(numpy.full(5, 0.5), size=num_slots)


@settings(max_examples=200)
@given(windows, st.integers(1, 8), st.integers(0, 10**6))
def test_greedy_equals_the_article(window, num_slots, seed):
    tokens, first, stop = window
    table = tables(numpy.random.default_rng(seed), num_slots)
    reading = read(SuffixOrder, tokens, first, stop, table)
    answer, score = article_reading(tokens[first:stop], table)
    assert tuple(tokens[reading.start : reading.start + reading.num_tokens]) == answer
    assert reading.score == pytest.approx(score, rel=1e-12)
    if answer:
        occurrences = [i for i in range(first, stop) if tuple(tokens[i : i + len(answer)]) == answer]
        assert reading.start == occurrences[0] and reading.start + len(answer) <= stop


def worth(answer, table):
    """Mean log-probability of an answer, its closing [SEP] included."""
    return float(numpy.mean(numpy.log([table[t][token] for t, token in enumerate((*answer, SEP))])))


@settings(max_examples=200)
@given(windows, st.integers(1, 8), st.integers(0, 10**6))
def test_best_is_the_best_of_all_ngrams(window, num_slots, seed):
    tokens, first, stop = window
    table = tables(numpy.random.default_rng(seed), num_slots)
    reading = read(SuffixOrder, tokens, first, stop, table, best_slots)
    answer = tuple(tokens[reading.start : reading.start + reading.num_tokens])
    inside = tokens[first:stop]
    every = [(), *(gram for n in range(1, num_slots) for gram in ngrams(inside, n))]
    assert worth(answer, table) == pytest.approx(max(worth(gram, table) for gram in every), rel=1e-12)
    assert reading.score == pytest.approx(numpy.mean([table[t][x] for t, x in enumerate((*answer, SEP))]), rel=1e-12)
    (weights,) = reading.choices
    assert (
        weights[0] == pytest.approx(numpy.exp(worth(answer, table)), rel=1e-6) == pytest.approx(max(weights), rel=1e-6)
    )
    places = sum(max(0, len(inside) - n + 1) for n in range(1, num_slots)) + 1
    alike = (
        sum(tuple(inside[i : i + len(answer)]) == answer for i in range(len(inside) - len(answer) + 1)) if answer else 1
    )
    assert len(weights) == 1 + places - alike


def test_one_greedy_path_misses_the_best():
    """The broken twin: a first token commits the rest, so the greedy reading is often worse and never better."""
    rng = numpy.random.default_rng(1)
    tokens, worse = [1, 2, 3, 4, 1, 3, 2, 2], 0
    for _ in range(100):
        table = tables(rng, 5)
        greedy, best = (read(SuffixOrder, tokens, 0, 8, table, search) for search in (read_slots, best_slots))
        found = [tuple(tokens[one.start : one.start + one.num_tokens]) for one in (greedy, best)]
        if greedy.num_tokens < 5:  # closed by [SEP]
            assert worth(found[0], table) <= worth(found[1], table) + 1e-12
            worse += worth(found[0], table) < worth(found[1], table) - 1e-9
    assert worse > 20


class ForgetfulInterval(Interval):
    """The broken twin: any token of the window may follow any other."""

    def narrow(self, token):
        return ForgetfulInterval(self.ids, self.starts - 1, self.num_tokens + 1, self.stop)


class ForgetfulOrder(SuffixOrder):
    def window(self, first, stop):
        whole = super().window(first, stop)
        return ForgetfulInterval(whole.ids, whole.starts, 0, stop)


def test_a_unigram_constraint_is_caught():
    rng = numpy.random.default_rng(0)
    tokens, different = [1, 2, 3, 4, 1, 3], 0
    for _ in range(50):
        table = tables(rng, 6)
        different += read(ForgetfulOrder, tokens, 0, 6, table).score != pytest.approx(article_reading(tokens, table)[1])
    assert different > 10


def test_confidences_of_one_slot_sum_to_one_at_any_temperature():
    """One slot: the alternatives are the allowed tokens and [SEP]; their path probabilities are a distribution."""
    tokens = [1, 2, 2, 3]
    table = numpy.array([[0.1, 0.3, 0.2, 0.15, 0.25]])  # token 4 does not stand in the window
    for temperature in (0.5, 1.0, 3.0):
        total = 0.0
        for favourite in (SEP, 1, 2, 3):
            choices = read(SuffixOrder, tokens, 0, 4, table).choices[0]
            allowed = table[0, [0, 1, 2, 3]] ** (1 / temperature)
            total += allowed[favourite] / allowed.sum()
        assert len(choices) == 4 and total == pytest.approx(1)
        expected = (0.3 ** (1 / temperature)) / (table[0, :4] ** (1 / temperature)).sum()
        assert read(SuffixOrder, tokens, 0, 4, table).confidence(temperature) == pytest.approx(expected, rel=1e-6)
