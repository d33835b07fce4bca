"""Only what the text says: a decoder held to the n-grams of a passage, greedy from left to right or comparing them all.

The suffixes of the passage, sorted once, put every n-gram's occurrences side by side: the places where (a_1 .. a_i) stands
are one interval of the sorted list, and the tokens that may follow are read off that interval. A step narrows it by
binary search; nothing is rebuilt. A window of the passage keeps the suffixes that begin in it, in the same order.

Letters: n tokens of the passage, W of the window, A answer slots.
Source: the masked reader of 7148 (which rebuilds its n-gram sets at every step); Manber and Myers 1990 for the order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy

__all__ = ["RIVALS", "SEARCHES", "Interval", "Reading", "SuffixOrder", "alike", "best_slots", "read_slots"]

RIVALS = 255  # n-grams beside the chosen one that a confidence is told against


class SuffixOrder:
    """The starts of all suffixes of ``ids`` [n], sorted (by token id, the shorter first).

    Cost: ceil(log2 r) sorts of n keys, r the longest repeat, once; 16 n bytes kept. A window costs one pass over n.

    >>> order = SuffixOrder([5, 3, 5, 3, 7])
    >>> order.starts.tolist()
    [1, 3, 0, 2, 4]
    >>> both = order.window(0, 5).narrow(5)
    >>> both.starts.tolist(), both.following().tolist(), both.narrow(3).narrow(7).starts.tolist()
    ([0, 2], [3, 3], [2])
    """

    def __init__(self, ids: numpy.ndarray | list[int]) -> None:
        self.ids = numpy.asarray(ids, dtype=numpy.int64)
        n = len(self.ids)
        rank = numpy.unique(self.ids, return_inverse=True)[1].astype(numpy.int64) if n else self.ids
        sorted_tokens = 1
        while n and rank.max() < n - 1:
            after = numpy.zeros(n, dtype=numpy.int64)  # 0: the suffix ends here, before every token
            after[:-sorted_tokens] = rank[sorted_tokens:] + 1
            rank = numpy.unique(rank * (n + 1) + after, return_inverse=True)[1].astype(numpy.int64)
            sorted_tokens *= 2
        self.starts = numpy.argsort(rank, kind="stable")

    def window(self, first: int, stop: int) -> Interval:
        """All places of ``first:stop`` of the text, as the interval of the empty n-gram."""
        return Interval(self.ids, self.starts[(self.starts >= first) & (self.starts < stop)], 0, stop)


@dataclass(frozen=True, slots=True)
class Interval:
    """The occurrences of one n-gram: sorted ``starts``, its ``num_tokens``, and where the window ends (``stop``)."""

    ids: numpy.ndarray
    starts: numpy.ndarray
    num_tokens: int
    stop: int

    def places(self) -> numpy.ndarray:
        """Where the next token stands, one for each occurrence that goes on inside the window."""
        places = self.starts + self.num_tokens
        return places[places < self.stop]

    def following(self) -> numpy.ndarray:
        """The tokens that may come next, sorted by id, one for each occurrence."""
        return self.ids[self.places()]

    def narrow(self, token: int) -> Interval:
        """The occurrences that go on with ``token``; empty when there is none."""
        starts = self.starts[self.starts + self.num_tokens < self.stop]
        tokens = self.ids[starts + self.num_tokens]
        low, high = numpy.searchsorted(tokens, [token, token + 1])
        return Interval(self.ids, starts[low:high], self.num_tokens + 1, self.stop)


@dataclass(frozen=True, slots=True)
class Reading:
    """What one window answers: its tokens ``start:start + num_tokens`` (the first occurrence), 0 tokens = abstains.

    ``score``: mean of the chosen probabilities, the closing [SEP]'s included. ``choices``: for every decision the
    weights of what was compared, the chosen one first; they carry the confidence at any temperature.
    """

    start: int
    num_tokens: int
    score: float
    choices: tuple[numpy.ndarray, ...]

    def confidence(self, temperature: float = 1.0) -> float:
        """Probability of the decisions, each renormalised over what was compared: Π p_c^(1/T) / Σ p^(1/T)."""
        log_odds = 0.0
        for probabilities in self.choices:
            scaled = numpy.log(numpy.maximum(probabilities.astype(numpy.float64), 1e-38)) / temperature
            log_odds += float(scaled[0] - numpy.logaddexp.reduce(scaled))
        return float(numpy.exp(log_odds))


def read_slots(allowed: Interval, at: numpy.ndarray, closing: numpy.ndarray, first: int) -> Reading:
    """Greedy from left to right over the slots; each token must continue an n-gram of the window, or close with [SEP].

    ``allowed``: the window ``first:stop`` of the passage; ``at`` [A, W]: probability, at each slot, of the token that stands
    at each place of the window (full softmax, not renormalised); ``closing`` [A]: that of [SEP], which wins ties.
    Cost: the occurrences of the prefix at every step, W at the first.
    """
    total, choices = 0.0, []
    for slot in range(len(closing)):
        places = allowed.places()
        probabilities = at[slot, places - first]
        best = int(probabilities.argmax()) if len(places) else -1
        closes = best < 0 or closing[slot] >= probabilities[best]
        chosen = closing[slot] if closes else probabilities[best]
        choices.append(_alternatives(allowed.ids[places], probabilities, -1 if closes else best, closing[slot]))
        total += float(chosen)
        if closes:
            break
        allowed = allowed.narrow(int(allowed.ids[places[best]]))
    inside = allowed.starts[allowed.starts + allowed.num_tokens <= allowed.stop]
    start = int(inside.min()) if allowed.num_tokens else first
    return Reading(start, allowed.num_tokens, total / len(choices), tuple(choices))


def best_slots(allowed: Interval, at: numpy.ndarray, closing: numpy.ndarray, first: int) -> Reading:
    """The n-gram of the window that the slots like best, all of them compared: no first token commits the rest.

    An n-gram's worth is its mean log-probability, the closing [SEP] included, (Σ_t log p_t + log p_[SEP]) / (n + 1); the
    first place wins ties, and [SEP] alone (to abstain) wins them all. Arguments and ``Reading`` as in ``read_slots``, whose
    greedy path is one of those compared; ``choices`` is one step here, among the ``RIVALS`` best n-grams by exp(worth).
    Cost: A·W sums, no loop over places.
    """
    logs, ends = (numpy.log(numpy.maximum(p, 1e-38, dtype=numpy.float64)) for p in (at, closing))
    width = at.shape[1]
    worths = [ends[:1]]  # of every place, for 0, 1, 2 ... tokens
    sums = numpy.zeros(width)
    for n in range(1, min(len(closing), width + 1)):
        sums = sums[: width - n + 1] + logs[n - 1, n - 1 :]
        worths.append((sums + ends[n]) / (n + 1))
    length = int(numpy.argmax([own.max() for own in worths]))
    start = int(worths[length].argmax())
    worth = worths[length][start]
    tokens = allowed.ids[first : first + width]
    worths[length] = worths[length][~alike(tokens, start, length, len(worths[length]))]
    others = numpy.concatenate(worths)
    if len(others) > RIVALS:
        others = numpy.partition(others, len(others) - RIVALS)[-RIVALS:]
    chosen = [float(at[t, start + t]) for t in range(length)] + [float(closing[length])]
    weights = numpy.exp(numpy.concatenate([[worth], others]))
    return Reading(first + start, length, sum(chosen) / len(chosen), (weights.astype(numpy.float32),))


def alike(tokens: numpy.ndarray, start: int, length: int, places: int) -> numpy.ndarray:
    """Which of the first ``places`` hold the same ``length`` tokens as ``start`` does: no rivals of that n-gram.

    >>> alike(numpy.array([5, 3, 5, 3, 7]), 0, 2, 4).tolist()
    [True, False, True, False]
    """
    found = numpy.ones(places, dtype=bool)
    for t in range(length):
        found &= tokens[t : t + places] == tokens[start + t]
    return found


SEARCHES = {"best": best_slots, "greedy": read_slots}


def _alternatives(
    tokens: numpy.ndarray, probabilities: numpy.ndarray, best: int, closing: numpy.floating
) -> numpy.ndarray:
    """One probability for each allowed token and [SEP], the chosen one (``best``; -1 = [SEP]) first; ``tokens`` are sorted."""
    first_of_kind = numpy.ones(len(tokens), dtype=bool)
    first_of_kind[1:] = tokens[1:] != tokens[:-1]
    if best < 0:
        return numpy.concatenate([[closing], probabilities[first_of_kind]], dtype=numpy.float32)
    first_of_kind &= tokens != tokens[best]
    return numpy.concatenate([[probabilities[best], closing], probabilities[first_of_kind]], dtype=numpy.float32)
