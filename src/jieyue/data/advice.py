"""What the counts of a data set mean for whoever trains on it: how severe, what was found, what to do.

An error is what makes training pointless or its scores untrue: leakage, one class, nearly no answerable question. A warning is
what costs quality or deserves a look. Counts that are neither stay in the table of everything that was counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from .findings import Findings

__all__ = ["Advice", "advise"]

Severity = Literal["error", "warning"]

_MOSTLY = 0.95  # unanswerable questions, or texts cut, that leave hardly anything to learn from
_MANY = 0.05

_LEAKING = ("examples", "texts", "dialogues", "sources", "lines")  # held-out examples themselves; else a part of them
_CUT = {  # what is too long for the rows: (of how many, the setting, what longer rows would need)
    "texts_truncated": ("examples", "--max-tokens"),
    "sources_truncated": ("pairs", "--source-tokens"),
    "titles_over_long": ("pairs", "--title-tokens"),
    "dialogues_shortened": ("dialogues", "--max-tokens"),
    "answers_over_long": ("answerable", "--answer-slots"),
}
_CUT_WORDS = {
    "texts_truncated": "texts",
    "sources_truncated": "sources",
    "titles_over_long": "titles",
    "dialogues_shortened": "dialogues",
    "answers_over_long": "answers",
}


@dataclass(frozen=True)
class Advice:
    """One thing to know before training: ``found`` in a sentence, ``do`` in another."""

    severity: Severity
    found: str
    do: str


def advise(
    findings: Mapping[str, Findings], encoded: Mapping[str, int], shared: Mapping[str, int]
) -> tuple[Advice, ...]:
    """Errors first. ``findings``: by where (the training files' first), ``encoded``: counts of the rows, ``shared``: of both parts."""
    found = [*_leakage(shared)]
    for number, (where, own) in enumerate(findings.items()):
        counts = {**own.counts, **(encoded if number == 0 else {})}
        found += [
            *_of_labels(where, counts),
            *_of_answers(where, counts),
            *_of_texts(where, own),
            *_too_long(where, counts),
        ]
    found += _of_words(encoded)
    return tuple(sorted(found, key=lambda one: one.severity != "error"))


def _leakage(shared: Mapping[str, int]) -> Iterator[Advice]:
    for name, count in shared.items():
        if not count:
            continue
        whole = name in _LEAKING
        found = f"Leakage: {count:,} training {name} also appear in held-out"
        do = (
            "Remove them from training, or judge by other files."
            if whole
            else "Judge by other files if they should be new."
        )
        yield Advice("error" if whole else "warning", found, do)


def _of_labels(where: str, counts: Mapping[str, int]) -> Iterator[Advice]:
    if counts.get("labels") == 1:
        found = f"One class: every example of the {where} has the same label"
        yield Advice("error", found, "Give examples of two labels or more.")
    if count := counts.get("texts_contradicted", 0):
        found = f"Contradiction: {count:,} texts of the {where} stood before with another label"
        yield Advice("warning", found, "Decide for one of them.")
    if count := counts.get("labels_unseen", 0):
        found = f"Unseen labels: {count:,} held-out examples have a label that training never shows"
        yield Advice("error", found, "Add examples of it to training.")
    if counts.get("examples") and counts.get("entities") == 0:
        yield Advice("error", f"No entities: none is marked in the {where}", "Name the tags' column with --tag-column.")


def _of_answers(where: str, counts: Mapping[str, int]) -> Iterator[Advice]:
    questions, without = counts.get("questions", 0), counts.get("unanswerable", 0)
    if questions and without >= _MOSTLY * questions:
        found = f"Nearly all unanswerable: {without:,} of {questions:,} questions of the {where} have no answer"
        yield Advice("error", found, "A reader would learn to abstain; look at how the answers are marked.")
    lost = counts.get("answers_not_in_text", 0)
    if lost > _MANY * max(1, counts.get("answerable", 0)):
        found = f"Answers elsewhere: {lost:,} answers of the {where} stand nowhere in their passage"
        yield Advice("warning", found, "They are judged by, not trained on; look at their spelling.")


def _of_texts(where: str, own: Findings) -> Iterator[Advice]:
    skipped = own.counts["records_skipped"]
    empty = sum("empty" in line for line in own.skipped)
    if empty:
        yield Advice(
            "error", f"Empty texts: {empty:,} records of the {where} have no text", "Fill them in, or remove them."
        )
    if skipped - empty > 0:
        yield Advice(
            "warning", f"Broken records: {skipped - empty:,} of the {where} were left out", "They are listed below."
        )


def _too_long(where: str, counts: Mapping[str, int]) -> Iterator[Advice]:
    for name, (whole, flag) in _CUT.items():
        cut, total = counts.get(name, 0), counts.get(whole, 0)
        if total and cut > _MANY * total:
            found = f"Too long: {cut:,} of {total:,} {_CUT_WORDS[name]} of the {where} are longer than {flag}"
            yield Advice("error" if cut >= _MOSTLY * total else "warning", found, f"Raise {flag}, or shorten them.")


def _of_words(encoded: Mapping[str, int]) -> Iterator[Advice]:
    unknown, tokens = encoded.get("unknown_tokens", 0), encoded.get("tokens", 0)
    if tokens and unknown > _MANY * tokens:
        found = f"Unknown tokens: {unknown:,} of {tokens:,} are not in the vocabulary"
        yield Advice("error" if unknown > 0.5 * tokens else "warning", found, "Take a model of this language.")
