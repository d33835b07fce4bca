"""Answers against golds, as facts: exact match, F1 and their mean, for all questions and for each kind apart."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

from jieyue.json_values import Facts

from .extraction import Rule, judge, normal_form, rule_for
from .intervals import bootstrap

__all__ = ["TrainingAnswers", "exact_matches", "interval_of", "score_answers"]

_NAMES: dict[Rule, str] = {"squad": "SQuAD 2.0", "cmrc2018": "CMRC 2018"}


@dataclass(frozen=True)
class TrainingAnswers:
    """What judging must know of the answers that training showed: the most frequent one, and which ones there were.

    The answers themselves are kept as digests of their normal forms, so a published model folder does not tell them.
    """

    usual: str
    digests: frozenset[str]

    @classmethod
    def of(cls, golds: Iterable[Sequence[str]]) -> TrainingAnswers:
        """Of the accepted answers of every training question; none (no answer) counts as the empty text.

        >>> found = TrainingAnswers.of([["two"], ["one", "1"], ["one"], []])
        >>> found.usual, found.has("The One", "squad"), found.has("three", "squad")
        ('one', True, False)
        """
        counts, digests = Counter[str](), set[str]()
        for accepted in golds:
            counts[accepted[0] if accepted else ""] += 1
            digests.update(_digest(gold, rule) for gold in accepted for rule in _NAMES)
        return cls(counts.most_common(1)[0][0] if counts else "", frozenset(digests))

    def has(self, answer: str, rule: Rule) -> bool:
        """Whether training showed this answer, by the rule's normal form."""
        return _digest(answer, rule) in self.digests

    def to_dict(self) -> Facts:
        """JSON values."""
        return {"most_frequent_answer": self.usual, "answer_digests": sorted(self.digests)}

    @classmethod
    def from_dict(cls, values: Facts) -> TrainingAnswers:
        """What ``to_dict`` gave."""
        return cls(values["most_frequent_answer"], frozenset(values["answer_digests"]))


def _digest(answer: str, rule: Rule) -> str:
    text = f"{rule} {normal_form(answer, rule)}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(text, digest_size=8).hexdigest()


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


def _part(judged: Sequence[tuple[float, float, Hashable]]) -> Facts:
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
    training: TrainingAnswers | None = None,
    groups: Sequence[Hashable] | None = None,
) -> Facts:
    """Facts about ``predicted`` for ``questions`` = (text, golds); questions whose golds are not known are only counted.

    Values are shares of 1. ``answerable``, ``unanswerable`` and, where ``training`` is known, ``unseen`` (answerable,
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
        if golds and training is not None and not any(training.has(gold, rule) for gold in golds):
            parts["unseen"].append(one)
    facts: Facts = _part(parts["all"])
    facts["rule"] = ", ".join(f"{_NAMES[rule]} ({count} questions)" for rule, count in used.items()) or "none"
    facts["abstained"] = abstained
    facts["golds_unknown"] = unknown
    for kind in ("answerable", "unanswerable", *(["unseen"] if training is not None else [])):
        facts[kind] = _part(parts[kind])
    return facts
