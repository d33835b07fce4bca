"""What is said more than once: dialogues, their openings and replies, exactly or nearly; kept as hashes, eight bytes each.

Compared are keys: texts after NFKC, without case and spaces. Nearly the same are dialogues whose letters agree: digits and
punctuation do not count. Hashes are Python's own, of 64 bits: they hold within one process.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Sequence

import numpy

from jieyue.text import normalize

from .history import Message

__all__ = ["Repeats", "keys_of", "repeated", "shared"]

_NO_LETTERS = re.compile(r"[\W\d_]+")


def keys_of(dialogue: Sequence[Message]) -> tuple[str, ...]:
    """What each turn is compared by."""
    return tuple(_key(one.text) for one in dialogue)


def _key(text: str) -> str:
    return "".join((text if text.isascii() else normalize(text)).casefold().split())


def _letters(keys: Sequence[str]) -> int:
    """A hash of the letters alone; of everything where there are none."""
    said = "\x1f".join(keys)
    return hash(_NO_LETTERS.sub("", said) or said)


class Repeats:
    """Hashes of many dialogues: of each whole, its opening (two turns), its letters, and every two turns in a row."""

    def __init__(self) -> None:
        self.wholes, self.openings, self.letters, self.replies = array("q"), array("q"), array("q"), array("q")

    def add(self, keys: tuple[str, ...]) -> None:
        """One more dialogue, by its turns' keys."""
        self.wholes.append(hash(keys))
        self.openings.append(hash(keys[:2]))
        self.letters.append(_letters(keys))
        self.replies.extend(hash(keys[at : at + 2]) for at in range(len(keys) - 1))


def _array(hashes: array[int]) -> numpy.ndarray:
    return numpy.frombuffer(hashes, numpy.int64) if len(hashes) else numpy.zeros(0, numpy.int64)


def repeated(*parts: Repeats) -> dict[str, int]:
    """How many dialogues of all parts stood before: exactly, and beyond these nearly."""
    wholes = numpy.concatenate([_array(part.wholes) for part in parts])
    letters = numpy.concatenate([_array(part.letters) for part in parts])
    exactly = len(wholes) - len(numpy.unique(wholes))
    return {
        "dialogues_repeated": exactly,
        "dialogues_nearly_repeated": len(letters) - len(numpy.unique(letters)) - exactly,
    }


def shared(training: Repeats, held_out: Sequence[tuple[str, ...]]) -> dict[str, int]:
    """How many held-out dialogues stand in training: ``dialogues``, ``openings``, ``replies``, and ``dialogues nearly``."""
    asked = {
        "dialogues": (training.wholes, [hash(keys) for keys in held_out]),
        "openings": (training.openings, [hash(keys[:2]) for keys in held_out]),
        "replies": (training.replies, [hash(keys[-2:]) for keys in held_out]),
        "dialogues nearly": (training.letters, [_letters(keys) for keys in held_out]),
    }
    found = {name: numpy.isin(numpy.array(own, numpy.int64), _array(known)) for name, (known, own) in asked.items()}
    found["dialogues nearly"] &= ~found["dialogues"]
    counts = {name: int(own.sum()) for name, own in found.items()}
    return {name: count for name, count in counts.items() if count or name != "dialogues nearly"}
