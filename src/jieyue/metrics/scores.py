"""Answers against golds, as facts: exact match, F1 and their mean, for all questions and for each kind apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .bootstrap import bootstrap_interval
from .extraction import Rule, judge, normal_form, rule_for

__all__ = ["exact_matches", "score_answers"]

_NAMES: dict[Rule, str] = {"squad": "SQuAD 2.0", "cmrc2018": "CMRC 2018"}


def exact_matches(predicted: Sequence[str], questions: Sequence[tuple[str, Sequence[str] | None]]) -> list[float]:
    """1.0 or 0.0 for each (question, golds), by the rule of its language."""
    return [
        judge(text, golds or (), rule_for(asked, golds or ()))[0]
        for text, (asked, golds) in zip(predicted, questions, strict=True)
    ]


def _part(pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    count = len(pairs)
    if not count:
        return {"questions": 0}
    exact, f1 = (sum(column) / count for column in zip(*pairs, strict=True))
    interval = bootstrap_interval([exact for exact, _ in pairs])
    return {
        "questions": count,
        "exact_match": exact,
        "exact_match_interval": interval,
        "f1": f1,
        "final": (exact + f1) / 2,
    }


def score_answers(
    predicted: Sequence[str],
    questions: Sequence[tuple[str, Sequence[str] | None]],
    training_golds: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Facts about ``predicted`` for ``questions`` = (text, golds); questions whose golds are not known are only counted.

    Values are shares of 1. ``answerable``, ``unanswerable`` and, where ``training_golds`` are given, ``unseen`` (answerable,
    no gold of theirs is an answer in training, by the rule's normal form) repeat the same facts for their part.
    ``exact_match_interval``: 95 %, by bootstrap over questions. ``rule`` names the normalisation.
    """
    used: dict[Rule, int] = {}
    parts: dict[str, list[tuple[float, float]]] = {"all": [], "answerable": [], "unanswerable": [], "unseen": []}
    forms = {rule: {normal_form(gold, rule) for gold in training_golds or ()} for rule in _NAMES}
    unknown = abstained = 0
    for text, (asked, golds) in zip(predicted, questions, strict=True):
        abstained += not text.strip()
        if golds is None:
            unknown += 1
            continue
        rule = rule_for(asked, golds)
        used[rule] = used.get(rule, 0) + 1
        pair = judge(text, golds, rule)
        parts["all"].append(pair)
        parts["answerable" if golds else "unanswerable"].append(pair)
        if golds and training_golds is not None and not any(normal_form(gold, rule) in forms[rule] for gold in golds):
            parts["unseen"].append(pair)
    facts: dict[str, Any] = _part(parts["all"])
    facts["rule"] = ", ".join(f"{_NAMES[rule]} ({count} questions)" for rule, count in used.items()) or "none"
    facts["abstained"] = abstained
    facts["golds_unknown"] = unknown
    for name in ("answerable", "unanswerable", *(["unseen"] if training_golds is not None else [])):
        facts[name] = _part(parts[name])
    return facts
