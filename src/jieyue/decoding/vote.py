"""Many readings, one answer: within a passage the maximum over its windows, then the passages vote.

Vote of an answer with scores s_1 .. s_m, one from each passage that gives it: Σ s² / (Σ s + 1). Empty answers do not
vote; where every passage abstains, the question is left unanswered. Source: 7148.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable

import numpy

__all__ = ["merge_windows", "vote", "vote_probabilities"]


def merge_windows(scored: Iterable[tuple[Hashable, float]]) -> dict[Hashable, float]:
    """The highest score of each answer among the windows of one passage. One window = no windows.

    >>> merge_windows([("1912", 0.3), ("Paris", 0.5), ("1912", 0.9)])
    {'1912': 0.9, 'Paris': 0.5}
    """
    best: dict[Hashable, float] = {}
    for answer, score in scored:
        best[answer] = max(score, best.get(answer, score))
    return best


def vote(passages: Iterable[dict[Hashable, float]]) -> list[tuple[Hashable, float]]:
    """(answer, vote), highest first; equal votes in order of first appearance.

    >>> vote([{"Paris": 0.5}, {"Paris": 0.5, "Rome": 1.0}, {}])
    [('Rome', 0.5), ('Paris', 0.25)]
    """
    sums: dict[Hashable, tuple[float, float]] = {}
    for passage in passages:
        for answer, score in passage.items():
            total, squares = sums.get(answer, (0.0, 0.0))
            sums[answer] = total + score, squares + score * score
    votes = [(answer, squares / (total + 1)) for answer, (total, squares) in sums.items()]
    return sorted(votes, key=lambda pair: -pair[1])


def vote_probabilities(passages: numpy.ndarray) -> numpy.ndarray:
    """The same vote on the next token: ``passages`` [P, S], the probability that each passage gives each token -> [S].

    >>> vote_probabilities(numpy.array([[0.5, 0.0], [0.5, 1.0]])).tolist()
    [0.25, 0.5]
    """
    voted: numpy.ndarray = (passages**2).sum(0) / (passages.sum(0) + 1)
    return voted
