"""Exact match and F1 of extracted answers, by the rule of the data's language, the maximum over the accepted answers; and as facts,
with their mean, for all questions and for each kind apart.

SQuAD: lower case, without punctuation and the articles a, an, the; F1 over bags of words.
CMRC 2018: lower case, without the script's list of marks; F1 from the longest common run of units (single CJK characters,
words and numbers of other scripts). Where the script uses nltk's word splitter inside Latin text, a regular expression
stands here: exact match is the script's, F1 can differ on English contractions and abbreviations.
No answer is right exactly where none is accepted. Source: evaluate-v2.0.py of SQuAD; cmrc2018_evaluate.py (v6).
"""

from __future__ import annotations

import hashlib
import re
import string
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from jieyue.errors import InputError
from jieyue.json_values import Facts
from jieyue.text import is_cjk

from .intervals import bootstrap

__all__ = [
    "RULES",
    "Rule",
    "TrainingAnswers",
    "exact_matches",
    "interval_of",
    "judge",
    "normal_form",
    "rule_for",
    "score_answers",
]

Rule = Literal["squad", "cmrc2018"]
RULES: tuple[Rule, ...] = ("squad", "cmrc2018")
_NAMES: dict[Rule, str] = {"squad": "SQuAD 2.0", "cmrc2018": "CMRC 2018"}

_MARKS = frozenset("-:_*^/\\~`+=，。：？！“”；’《》…·、「」（）－～『』")
_WORDS = re.compile(r"\d+(?:[.,]\d+)*|\w+|[^\w\s]")


def rule_for(question: str, golds: Sequence[str] = ()) -> Rule:
    """CMRC 2018's rule where question or accepted answers hold CJK characters, else SQuAD's.

    >>> rule_for("Who wrote it?", ["Tom"]), rule_for("谁写的?")
    ('squad', 'cmrc2018')
    """
    return "cmrc2018" if any(is_cjk(char) for text in (question, *golds) for char in text) else "squad"


def normal_form(text: str, rule: Rule) -> str:
    """What is compared for exact match.

    >>> normal_form("The  Eiffel-Tower.", "squad"), normal_form(" 《呐喊》 ", "cmrc2018")
    ('eiffeltower', '呐喊')
    """
    if rule == "squad":
        bare = "".join(char for char in text.lower() if char not in string.punctuation)
        return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())
    if rule == "cmrc2018":
        return "".join(char for char in text.lower().strip() if char not in _MARKS)
    raise InputError(f"rule={rule!r}: expected one of {', '.join(RULES)}")


def _mixed_units(text: str) -> list[str]:
    """Single CJK characters; words, numbers and other marks of the text between them."""
    spaced = "".join(f" {char} " if is_cjk(char) else char for char in normal_form(text, "cmrc2018"))
    return _WORDS.findall(spaced)


def _longest_common_run(a: Sequence[str], b: Sequence[str]) -> int:
    longest, above = 0, [0] * (len(b) + 1)
    for unit in a:
        row = [0] * (len(b) + 1)
        for j, other in enumerate(b, 1):
            if unit == other:
                row[j] = above[j - 1] + 1
                longest = max(longest, row[j])
        above = row
    return longest


def _overlap(predicted: str, gold: str, rule: Rule) -> float:
    if rule == "squad":
        a, b = normal_form(predicted, rule).split(), normal_form(gold, rule).split()
        shared = sum((Counter(a) & Counter(b)).values())
    else:
        a, b = _mixed_units(predicted), _mixed_units(gold)
        shared = _longest_common_run(a, b)
    if not a or not b:
        return float(a == b)
    return 2 * shared / (len(a) + len(b))


def judge(predicted: str, golds: Sequence[str], rule: Rule) -> tuple[float, float]:
    """(exact match, F1) in 0..1, each the maximum over ``golds``; no golds means that no answer is right.

    >>> judge("in 1998", ["1998", "the year 1998"], "squad")
    (0.0, 0.6666666666666666)
    >>> judge("", [], "squad"), judge("1998", [], "squad"), judge("", ["1998"], "cmrc2018")
    ((1.0, 1.0), (0.0, 0.0), (0.0, 0.0))
    """
    if not golds or not predicted.strip():
        right = float(not golds and not predicted.strip())
        return right, right
    form = normal_form(predicted, rule)
    exact = float(any(form == normal_form(gold, rule) for gold in golds))
    return exact, max(_overlap(predicted, gold, rule) for gold in golds)


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
