"""Tags of words as entities and back: BIO, IOB1, BIOES and BILOU are read alike, by the rules of seqeval and CoNLL's conlleval.

An entity begins at B or S, after an E or S, after O, or where the type changes; so an I without B begins one (IOB1, and broken BIO).
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["Span", "bio_of", "spans_of"]

Span = tuple[str, int, int]
"""Type, first word, the word after the last."""

_ALIASES = {"L": "E", "U": "S", "M": "I"}


def spans_of(tags: Sequence[str]) -> list[Span]:
    """The entities of one text's tags, in BIO, IOB1, BIOES or BILOU.

    >>> spans_of(["B-PER", "I-PER", "O", "I-LOC", "S-ORG"])
    [('PER', 0, 2), ('LOC', 3, 4), ('ORG', 4, 5)]
    """
    found: list[Span] = []
    before, kind, start = "O", "", 0
    for at, tag in enumerate([*tags, "O"]):
        mark, _, own = tag.partition("-")
        mark = _ALIASES.get(mark, mark)
        own = own or ("" if mark == "O" else "_")
        inside = before not in ("O", "")
        begins = mark != "O" and (mark in "BS" or before in ("E", "S", "O") or own != kind)
        if inside and (mark == "O" or begins):
            found.append((kind, start, at))
        if begins:
            start = at
        before, kind = mark, own
    return found


def bio_of(spans: Sequence[Span], length: int) -> list[str]:
    """Entities that do not overlap as BIO (IOB2) tags of so many words.

    >>> bio_of([("PER", 0, 2)], 3)
    ['B-PER', 'I-PER', 'O']
    """
    tags = ["O"] * length
    for kind, start, end in spans:
        tags[start:end] = [f"B-{kind}", *[f"I-{kind}"] * (end - start - 1)]
    return tags
