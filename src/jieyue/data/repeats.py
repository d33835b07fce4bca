"""What is said more than once: dialogues, their openings and replies, exactly or nearly; kept as hashes, eight bytes each.

Compared are keys: texts after NFKC, without case and spaces. Nearly the same are dialogues whose letters agree: digits and
punctuation do not count. Hashes are Python's own, of 64 bits: they hold within one process.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import TypeVar

import numpy

from jieyue.text import folded, normalize

from .history import Message

__all__ = ["Repeats", "keys_of", "repeated", "shared", "with_new_replies"]

T = TypeVar("T", bound=Sequence[Message])


def keys_of(dialogue: Sequence[Message]) -> tuple[str, ...]:
    """What each turn is compared by."""
    whole = "\0".join([one.text for one in dialogue])  # one text costs less than many
    if whole.count("\0") >= len(dialogue) or "\ufeff" in whole:
        return tuple(folded(one.text) for one in dialogue)
    whole = (whole if whole.isascii() else normalize(whole)).casefold()
    return tuple(["".join(text.split()) for text in whole.split("\0")])


def _letters(keys: Sequence[str]) -> int:
    """A hash of the letters alone; of everything where there are none."""
    said = "\x1f".join(keys)
    return hash("".join(filter(str.isalpha, said)) or said)


class Repeats:
    """Hashes of many dialogues: of each whole, its opening (two turns), its letters, and every turn that is said in it."""

    def __init__(self) -> None:
        self.wholes, self.openings, self.letters, self.said = array("q"), array("q"), array("q"), array("q")

    def add(self, keys: tuple[str, ...]) -> None:
        """One more dialogue, by its turns' keys."""
        self.wholes.append(hash(keys))
        self.openings.append(hash(keys[:2]))
        self.letters.append(_letters(keys))
        self.said.extend(map(hash, keys))


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


def shared(training: Repeats, held_out: Sequence[Sequence[Message]]) -> dict[str, int]:
    """How many held-out dialogues stand in training: ``dialogues``, ``openings``, ``replies``, and ``dialogues nearly``.

    ``replies``: of the dialogues of two turns or more, those whose reply is said anywhere in training.
    """
    keys = [keys_of(one) for one in held_out]
    asked = {
        "dialogues": (training.wholes, [hash(one) for one in keys]),
        "openings": (training.openings, [hash(one[:2]) for one in keys]),
        "replies": (training.said, [_reply(one) for one in held_out if len(one) > 1]),
        "dialogues nearly": (training.letters, [_letters(one) for one in keys]),
    }
    found = {name: numpy.isin(numpy.array(own, numpy.int64), _array(known)) for name, (known, own) in asked.items()}
    found["dialogues nearly"] &= ~found["dialogues"]
    counts = {name: int(own.sum()) for name, own in found.items()}
    return {name: count for name, count in counts.items() if count or name != "dialogues nearly"}


def with_new_replies(training: Repeats, held_out: Sequence[T]) -> list[T]:
    """The held-out dialogues whose reply is said nowhere in training."""
    is_said = numpy.isin(numpy.array([_reply(one) for one in held_out], numpy.int64), _array(training.said))
    return [one for one, said in zip(held_out, is_said, strict=True) if not said]


def _reply(dialogue: Sequence[Message]) -> int:
    """A hash of the assistant's last turn, by which a dialogue is judged; of the last turn where the assistant says nothing."""
    return hash(folded(next((one.text for one in reversed(dialogue) if one.role == "assistant"), dialogue[-1].text)))
