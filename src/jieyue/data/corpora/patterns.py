"""The hand-written sentence patterns: what a topic's text file says, as values.

A topic file (``en/people.txt``) is read line by line; the first character says what a line is::

    @ woman / She, $last                     a kind of subject, and how later sentences may refer to it
    & birthplace home                        facts so near in meaning that one is not asked for where another is told
    ! {s} looks back                         a title; its slots must stand in the passage
    ~ The interview took place by telephone. a sentence that holds no asked fact
    + {s} was born in {birthplace:town}.     a sentence pattern, used in training and held-out text
    * {birthplace:town} is {s}'s home town.  a pattern kept for held-out text
    ? birthplace: Where was {s} born?        question forms for the pattern above, several parted by ``|``

``{s}`` is the subject, ``{attribute:kind}`` a value (values.py). Patterns that state the same thing use the same
attribute, so that a passage states it once for each subject and no passage contradicts itself. ``$last`` is the name's last word.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

__all__ = ["LANGUAGES", "Pattern", "Topic", "read_topics"]

LANGUAGES = ("en", "zh")
_SLOT = re.compile(r"\{(\w+)(?::([^}]*))?\}")


@dataclass(frozen=True, slots=True)
class Pattern:
    """One sentence with slots, and the ways to ask for each slot.

    ``pieces`` alternates text and attribute: text, attribute, text, ..., text. ``kinds`` maps attribute to kind,
    ``questions`` attribute (or ``"s"``) to question forms in the same alternating shape.
    """

    name: str
    heldout: bool
    pieces: tuple[str, ...]
    kinds: dict[str, str]
    questions: dict[str, tuple[tuple[str, ...], ...]]


@dataclass(frozen=True, slots=True)
class Topic:
    """All that is written about one topic in one language.

    ``subjects`` pairs a kind of name with short references; ``near`` holds sets of attributes close in meaning.
    """

    name: str
    language: str
    subjects: tuple[tuple[str, tuple[str, ...]], ...]
    titles: tuple[tuple[str, ...], ...]
    fillers: tuple[str, ...]
    near: tuple[frozenset[str], ...]
    patterns: tuple[Pattern, ...]


def _pieces(text: str) -> tuple[str, ...]:
    parts = _SLOT.split(text.strip())  # text, attribute, kind, text, ...
    return tuple(part for index, part in enumerate(parts) if index % 3 != 2)


def _topic(path: Path) -> Topic:
    subjects: list[tuple[str, tuple[str, ...]]] = []
    titles: list[tuple[str, ...]] = []
    fillers: list[str] = []
    near: list[frozenset[str]] = []
    patterns: list[Pattern] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        mark, text = line[:1], line[1:].strip()
        where = f"{path.parent.name}/{path.name}:{number}"
        if mark in ("", "#"):
            continue
        if mark == "@":
            kind, _, short = text.partition("/")
            subjects.append((kind.strip(), tuple(s.strip() for s in short.split(",") if s.strip())))
        elif mark == "&":
            near.append(frozenset(text.split()))
        elif mark == "!":
            titles.append(_pieces(text))
        elif mark == "~":
            fillers.append(text)
        elif mark in "+*":
            kinds = {attribute: kind for attribute, kind in _SLOT.findall(text) if attribute != "s"}
            assert all(kinds.values()), f"{where}: a slot without a kind"
            name = f"{path.parent.name}.{path.stem}.{len(patterns) + 1:02d}"
            patterns.append(Pattern(name, mark == "*", _pieces(text), kinds, {}))
        elif mark == "?":
            attribute, _, forms = text.partition(":")
            pattern = patterns[-1]
            assert attribute in pattern.kinds or attribute == "s", f"{where}: {attribute} is not in the sentence"
            pattern.questions[attribute] = tuple(_pieces(form) for form in forms.split("|"))
            for form in pattern.questions[attribute]:
                asked = set(form[1::2])
                assert asked and asked <= {"s", *pattern.kinds} - {attribute}, f"{where}: {form}"
        else:
            raise AssertionError(f"{where}: unknown mark {mark!r}")
    known = {"s"}.union(*(pattern.kinds for pattern in patterns))
    for used in [*near, *map(set, (title[1::2] for title in titles))]:
        assert used <= known, f"{path.parent.name}/{path.name}: no pattern tells {sorted(used - known)}"
    return Topic(
        path.stem, path.parent.name, tuple(subjects), tuple(titles), tuple(fillers), tuple(near), tuple(patterns)
    )


@cache
def read_topics(language: str) -> tuple[Topic, ...]:
    """Every topic of a language, in the order of their names."""
    folder = Path(__file__).parent / language
    return tuple(_topic(path) for path in sorted(folder.glob("*.txt")) if path.stem != "names")
