"""Precision, recall and F1 over whole entities, as seqeval has them.

An entity counts where its type, its first and its last word are equal.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from jieyue.json_values import Facts

from .multilabel import compared, interval, micro_f1

__all__ = ["score_entities"]

Span = tuple[str, int, int]
"""Type, first word, the word after the last."""


def score_entities(predicted: Sequence[Sequence[Span]], golds: Sequence[Sequence[Span]]) -> Facts:
    """Facts: ``examples``, ``precision``, ``recall``, ``f1`` (with ``_interval``, 95 %, texts drawn), ``by_type``.

    >>> facts = score_entities([[("A", 0, 1), ("A", 2, 3)]], [[("A", 0, 1), ("B", 2, 3)]])
    >>> facts["precision"], facts["recall"], facts["f1"]
    (0.5, 0.5, 0.5)
    """
    pairs, (right, told, asked) = compared("score_entities", predicted, golds)
    facts: Facts = {
        "examples": len(pairs),
        "entities": int(asked.sum()),
        "precision": float(right.sum() / max(1.0, told.sum())),
        "recall": float(right.sum() / max(1.0, asked.sum())),
        "f1": micro_f1(right, told, asked) if told.sum() + asked.sum() else 0.0,
    }
    if len(pairs) > 1:
        facts["f1_interval"] = interval(right, told, asked)
    true, taken, wanted = Counter[str](), Counter[str](), Counter[str]()
    for own, gold in pairs:
        true.update(kind for kind, _, _ in own & gold)
        taken.update(kind for kind, _, _ in own)
        wanted.update(kind for kind, _, _ in gold)
    facts["by_type"] = {
        kind: {
            "entities": wanted[kind],
            "precision": true[kind] / max(1, taken[kind]),
            "recall": true[kind] / wanted[kind],
            "f1": 2 * true[kind] / (taken[kind] + wanted[kind]),
        }
        for kind in sorted(wanted)
    }
    return facts
