"""What fills a slot: names composed of parts, and numbers, years, times and dates in the manner of the language.

``names.txt`` of a language holds one kind a line; ``,`` parts items, ``+`` joins two parts with a space, ``^`` without::

    surname *= Ash, Brad, Cal ^ ton, ley, ford
    woman = @first_f + @surname

``*=`` divides the combinations: one in five (first index + twice the second divisible by five) appears only in
held-out text, the others only in training text, so held-out names are new and yet made of syllables and characters
that training text has. ``@`` refers to another kind and inherits its division.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from random import Random

__all__ = ["draw", "is_heldout", "read_names"]

MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
          "November", "December")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Names:
    """One kind: items to choose from for each split, or parts (literal lists and references) to draw and join."""

    items: dict[bool, tuple[str, ...]] | None
    parts: tuple[str | tuple[str, ...], ...]
    joiner: str


def is_heldout(first: int, second: int) -> bool:
    """The division of combinations, by the places of their parts in the lists: one in five is held out."""
    return (first + 2 * second) % 5 == 0


def _kind(text: str, divided: bool) -> Names:
    joiner = " " if " + " in text else ""
    parts = tuple(
        part.strip() if part.strip().startswith("@") else tuple(item.strip() for item in part.split(","))
        for part in re.split(r" [+^] ", text)
    )
    lists = [part for part in parts if isinstance(part, tuple)]
    if len(lists) != len(parts):
        assert not divided, f"{text}: references inherit their division"
        return Names(None, parts, joiner)
    found: dict[bool, list[str]] = {False: [], True: []}
    for indexes in product(*(range(len(part)) for part in lists)):
        item = joiner.join(part[index] for part, index in zip(lists, indexes, strict=True))
        heldout = is_heldout(*(*indexes, 0)[:2])
        for split in (False, True):
            if not divided or heldout == split:
                found[split].append(item)
    return Names({split: tuple(items) for split, items in found.items()}, parts, joiner)


@cache
def read_names(language: str) -> dict[str, Names]:
    """All kinds of names of a language."""
    kinds: dict[str, Names] = {}
    for line in (Path(__file__).parent / language / "names.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, mark, text = re.split(r"\s(\*?=)\s", line, maxsplit=1)
            assert name not in kinds, f"{name} is given twice"
            kinds[name] = _kind(text, mark == "*=")
    return kinds


def _name(kind: str, language: str, heldout: bool, random: Random) -> str:
    names = read_names(language)[kind]
    if names.items is not None:
        return random.choice(names.items[heldout])
    drawn = [_name(p[1:], language, heldout, random) if isinstance(p, str) else random.choice(p) for p in names.parts]
    return names.joiner.join(drawn)


def _time(low: str, high: str, language: str, random: Random) -> str:
    start, stop = (int(text.split(":")[0]) * 60 + int(text.split(":")[1]) for text in (low, high))
    hour, minute = divmod(random.randrange(start, stop + 1, 5), 60)
    clock = f"{hour}:{minute:02d}"
    style = random.random()
    if language == "en":
        half = "am" if hour < 12 else "pm"
        return clock if style < 0.7 else f"{(hour - 1) % 12 + 1}:{minute:02d} {half}"
    if style < 0.5:
        return clock
    if minute % 30:
        return f"{hour}点{minute}分"
    half = "上午" if hour < 12 else "下午" if hour < 18 else "晚上"
    return f"{half}{(hour - 1) % 12 + 1}点" + ("半" if minute else "")


def _date(language: str, random: Random) -> str:
    month, day = random.randrange(12), random.randrange(1, 29)
    return f"{day} {MONTHS[month]}" if language == "en" else f"{month + 1}月{day}日"


def draw(kind: str, *, language: str, heldout: bool, random: Random, origin: int) -> str:
    """One value of a kind. Besides the kinds of names.txt:

    ``n low high step unit`` a whole number; ``d low high unit`` one with one decimal; ``year low high``;
    ``age low high`` a year so long after the subject's ``origin``; ``time 7:00 9:30``; ``date``.
    """
    word, *rest = kind.split(" ")
    gap = " " if language == "en" else ""
    if word == "n":
        low, high, step = (int(number) for number in rest[:3])
        value, unit = str(random.randrange(low, high + 1, step)), " ".join(rest[3:])
    elif word == "d":
        low, high = (int(float(number) * 10) for number in rest[:2])
        tenths, unit = random.randint(low, high), " ".join(rest[2:])
        value = f"{tenths // 10}.{tenths % 10}"
    elif word in ("year", "age"):
        low, high = int(rest[0]), int(rest[1])
        value, unit = (
            str(random.randint(low, high) + (origin if word == "age" else 0)),
            "" if language == "en" else "年",
        )
    elif word == "time":
        return _time(rest[0], rest[1], language, random)
    elif word == "date":
        return _date(language, random)
    else:
        return _name(kind, language, heldout, random)
    return f"{value}{gap}{unit}" if unit else value
