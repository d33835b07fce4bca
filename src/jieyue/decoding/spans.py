"""The best span of a window from the logits of its start and its end, beside the one that says there is none.

    log p(s, e) = log softmax(start)_s + log softmax(end)_e,   s ≤ e < s + longest;   null: both at [CLS]

Each softmax is over [CLS] and the window's tokens. Letters: W tokens of the window.
"""

from __future__ import annotations

import numpy

from .constraints import RIVALS, Reading, alike

__all__ = ["best_span"]


def best_span(tokens: numpy.ndarray, logits: numpy.ndarray, null: numpy.ndarray, longest: int, first: int) -> Reading:
    """The most probable span of at most ``longest`` tokens; the null span wins ties, then the shorter, then the first.

    ``tokens`` [W]; ``logits`` [2, W] of start and end at the window's tokens, ``null`` [2] at [CLS]; ``first``: where the window
    begins in its passage. ``score``: mean of the two probabilities. ``choices``: one, the chosen span's probability and those of
    the ``RIVALS`` best others; the same words in another place are no rival. Cost: ``longest``·W sums.

    >>> found = best_span(numpy.array([7, 8, 9]), numpy.array([[0., 4, 0], [0, 0, 5]]), numpy.zeros(2), 2, 10)
    >>> found.start, found.num_tokens, round(found.score, 2)
    (11, 2, 0.96)
    """
    whole = numpy.concatenate([null[:, None], logits], axis=1).astype(numpy.float64)
    highest = whole.max(axis=1, keepdims=True)
    logs = whole - highest - numpy.log(numpy.exp(whole - highest).sum(axis=1, keepdims=True))
    start, end = logs[:, 1:]
    worths = [logs[:, :1].sum(axis=0)]  # of every place, for 0 (null), 1, 2 ... tokens
    for n in range(1, min(longest, len(tokens)) + 1):
        worths.append(start[: len(start) - n + 1] + end[n - 1 :])
    length = int(numpy.argmax([own.max() for own in worths]))
    at = int(worths[length].argmax())
    worth = worths[length][at]
    chosen = logs[:, 0] if not length else numpy.array([start[at], end[at + length - 1]])
    worths[length] = worths[length][~alike(tokens, at, length, len(worths[length]))]
    others = numpy.concatenate(worths)
    if len(others) > RIVALS:
        others = numpy.partition(others, len(others) - RIVALS)[-RIVALS:]
    weights = numpy.exp(numpy.concatenate([[worth], others])).astype(numpy.float32)
    return Reading(first + at if length else first, length, float(numpy.exp(chosen).mean()), (weights,))
