"""Exact match and F1 of extracted answers, by the rule of the data's language; the maximum over the accepted answers.

SQuAD: lower case, without punctuation and the articles a, an, the; F1 over bags of words.
CMRC 2018: lower case, without the script's list of marks; F1 from the longest common run of units (single CJK characters,
words and numbers of other scripts). Where the script uses nltk's word splitter inside Latin text, a regular expression
stands here: exact match is the script's, F1 can differ on English contractions and abbreviations.
No answer is right exactly where none is accepted. Source: evaluate-v2.0.py of SQuAD; cmrc2018_evaluate.py (v6).
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from jieyue.errors import InputError
from jieyue.text import is_cjk

__all__ = ["RULES", "Rule", "judge", "normal_form", "rule_for"]

Rule = Literal["squad", "cmrc2018"]
RULES: tuple[Rule, ...] = ("squad", "cmrc2018")

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
