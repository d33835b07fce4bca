"""What a reader must beat: answers that need no learning.

Three of them: say nothing; say the answer that training gives most often; say the span that the question's own words
point to.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from jieyue.json_values import Facts
from jieyue.text import units

from .extraction import TrainingAnswers, exact_matches, interval_of, score_answers

__all__ = ["compare_baselines", "overlap_span"]

_CLAUSE_END = re.compile(r"[，。！？；：、,!?;:\n]|\.(?=\s|$)")


def _ngrams(words: Sequence[str], longest: int = 3) -> set[tuple[str, ...]]:
    return {tuple(words[at : at + n]) for n in range(1, longest + 1) for at in range(len(words) - n + 1)}


def _placed_units(text: str) -> list[tuple[str, int, int]]:
    found, end = [], 0
    for unit in units(text):
        start = text.index(unit, end)
        end = start + len(unit)
        found.append((unit.casefold(), start, end))
    return found


def overlap_span(question: str, passages: Sequence[str]) -> str:
    """Of the clause that shares the most 1- to 3-grams with the question, the longest run of units not in the question.

    A clause ends at a mark of punctuation; n-grams are of words, or of characters in CJK text; the first wins ties.

    >>> overlap_span("Where does the ferry leave?", ["Tickets cost two crowns. The ferry does leave from Pier Nine."])
    'from Pier Nine'
    """
    asked = [unit.casefold() for unit in units(question)]
    wanted, words = _ngrams(asked), set(asked)
    best_overlap, best = -1, ""
    for passage in passages:
        for clause in _CLAUSE_END.split(passage):
            placed = _placed_units(clause)
            if not placed:
                continue
            overlap = len(_ngrams([unit for unit, _, _ in placed]) & wanted)
            if overlap > best_overlap:
                best_overlap, best = overlap, _longest_new_run(clause, placed, words)
    return best


def _longest_new_run(clause: str, placed: Sequence[tuple[str, int, int]], known: set[str]) -> str:
    longest: tuple[int, int] = (0, 0)
    first = 0
    for at in range(len(placed) + 1):
        if at == len(placed) or placed[at][0] in known:
            if at - first > longest[1] - longest[0]:
                longest = first, at
            first = at + 1
    return clause[placed[longest[0]][1] : placed[longest[1] - 1][2]] if longest[1] > longest[0] else ""


def compare_baselines(
    predicted: Sequence[str],
    questions: Sequence[tuple[str, Sequence[str] | None, Sequence[str]]],
    training: TrainingAnswers | None = None,
) -> Facts:
    """Facts of each baseline for ``questions`` = (text, golds, passages), and the gain over the best of them.

    ``training``: what its answers were; without it one baseline is missing.

    The gain is in exact match on answerable questions; ``gain_interval`` its 95 % interval, by bootstrap over the paired
    differences.
    """
    usual = {} if training is None else {"most frequent answer": [training.usual] * len(questions)}
    answers = {
        "always abstain": [""] * len(questions),
        **usual,
        "best n-gram overlap span": [overlap_span(asked, passages) for asked, _, passages in questions],
    }
    asked = [(text, golds) for text, golds, _ in questions]
    groups = [passages[0] for _, _, passages in questions]
    facts: Facts = {name: score_answers(own, asked, training, groups) for name, own in answers.items()}
    answerable = [at for at, (_, golds) in enumerate(asked) if golds]
    if not answerable:
        return {"baselines": facts}

    def exact(texts: Sequence[str]) -> list[float]:
        return exact_matches(
            [texts[at] for at in answerable], [(asked[at][0], asked[at][1] or ()) for at in answerable]
        )

    best = max(answers, key=lambda name: sum(exact(answers[name])))
    gains = [a - b for a, b in zip(exact(predicted), exact(answers[best]), strict=True)]
    return {
        "baselines": facts,
        "best_baseline": best,
        "gain": sum(gains) / len(gains),
        "gain_interval": interval_of(gains, [groups[at] for at in answerable]),
    }
