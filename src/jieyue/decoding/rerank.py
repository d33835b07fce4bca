"""The best of several replies by mutual information: a reply from which the question can be guessed is not a stock phrase.

    score = (1 − λ)·log p(reply | talk) + λ·log p(talk | reply)

The second term needs a model that writes backwards, or the same model asked the other way round. λ = 0 is the likeliest
reply, λ = 1 what DialoGPT did. Source: Li et al. 2016, "A Diversity-Promoting Objective Function"; Zhang et al. 2020, DialoGPT.
"""

from __future__ import annotations

from collections.abc import Sequence

from jieyue.errors import InputError

__all__ = ["rerank"]


def rerank(forward: Sequence[float], backward: Sequence[float], weight: float = 0.5) -> list[int]:
    """The numbers of the replies, best first; equal scores stay in order. ``weight``: λ, from 0 to 1.

    >>> rerank([-1.0, -2.0], [-9.0, -3.0]), rerank([-1.0, -2.0], [-9.0, -3.0], weight=0.0)
    ([1, 0], [0, 1])
    """
    if len(forward) != len(backward) or not 0 <= weight <= 1:
        found = f"{len(forward)} and {len(backward)} scores, weight={weight}"
        raise InputError(f"rerank: found {found}, expected as many of each and a weight from 0 to 1")
    scores = [(1 - weight) * ahead + weight * back for ahead, back in zip(forward, backward, strict=True)]
    return sorted(range(len(scores)), key=lambda number: -scores[number])
