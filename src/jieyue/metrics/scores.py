"""Answers against golds, as facts: exact match, F1 and their mean, for all questions and for each kind apart."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from .extraction import Rule, judge, normal_form, rule_for
from .intervals import bootstrap

__all__ = ["exact_matches", "interval_of", "score_answers"]

_NAMES: dict[Rule, str] = {"squad": "SQuAD 2.0", "cmrc2018": "CMRC 2018"}


def exact_matches(predicted: Sequence[str], questions: Sequence[tuple[str, Sequence[str] | None]]) -> list[float]:
    """1.0 or 0.0 for each (question, golds), by the rule of its language."""
    return [
        judge(text, golds or (), rule_for(asked, golds or ()))[0]
        for text, (asked, golds) in zip(predicted, questions, strict=True)
    ]


def interval_of(values: Sequence[float], groups: Sequence[Hashable]) -> tuple[float, float]:
    """95 % bootstrap interval of the mean, questions of one group (passage) drawn together; one question tells nothing.

    >>> interval_of([1.0], ["p"])
    (-1.0, 1.0)
    """
    if len(values) < 2:
        return -1.0, 1.0
    found = bootstrap(values, groups=groups if len(set(groups)) > 1 else None)
    return float(found.low), float(found.high)


def _part(judged: Sequence[tuple[float, float, Hashable]]) -> dict[str, Any]:
    count = len(judged)
    if not count:
        return {"questions": 0}
    exact, f1 = sum(one[0] for one in judged) / count, sum(one[1] for one in judged) / count
    low, high = interval_of([one[0] for one in judged], [one[2] for one in judged])
    return {
        "questions": count,
        "exact_match": exact,
        "exact_match_interval": (max(low, 0.0), high),
        "f1": f1,
        "final": (exact + f1) / 2,
    }


def score_answers(
    predicted: Sequence[str],
    questions: Sequence[tuple[str, Sequence[str] | None]],
    training_golds: Sequence[str] | None = None,
    groups: Sequence[Hashable] | None = None,
) -> dict[str, Any]:
    """Facts about ``predicted`` for ``questions`` = (text, golds); questions whose golds are not known are only counted.

    Values are shares of 1. ``answerable``, ``unanswerable`` and, where ``training_golds`` are given, ``unseen`` (answerable,
    no gold of theirs is an answer in training, by the rule's normal form) repeat the same facts for their part.
    ``exact_match_interval``: 95 %, by bootstrap, questions with the same entry in ``groups`` (their passage) drawn together.
    ``rule`` names the normalisation.
    """
    used: dict[Rule, int] = {}
    parts: dict[str, list[tuple[float, float, Hashable]]] = {
        "all": [],
        "answerable": [],
        "unanswerable": [],
        "unseen": [],
    }
    forms = {rule: {normal_form(gold, rule) for gold in training_golds or ()} for rule in _NAMES}
    unknown = abstained = 0
    names = range(len(questions)) if groups is None else groups
    for text, (asked, golds), name in zip(predicted, questions, names, strict=True):
        abstained += not text.strip()
        if golds is None:
            unknown += 1
            continue
        rule = rule_for(asked, golds)
        used[rule] = used.get(rule, 0) + 1
        one = (*judge(text, golds, rule), name)
        parts["all"].append(one)
        parts["answerable" if golds else "unanswerable"].append(one)
        if golds and training_golds is not None and not any(normal_form(gold, rule) in forms[rule] for gold in golds):
            parts["unseen"].append(one)
    facts: dict[str, Any] = _part(parts["all"])
    facts["rule"] = ", ".join(f"{_NAMES[rule]} ({count} questions)" for rule, count in used.items()) or "none"
    facts["abstained"] = abstained
    facts["golds_unknown"] = unknown
    for kind in ("answerable", "unanswerable", *(["unseen"] if training_golds is not None else [])):
        facts[kind] = _part(parts[kind])
    return facts
