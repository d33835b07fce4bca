"""Words that say how something came out, and their tone (right, wrong, doubt), which has a colour: no colour says anything alone."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["TONES", "tone"]

TONES = {
    "holds": "right",
    "exact": "right",
    "the same update, up to rounding": "right",
    "fails": "wrong",
    "error": "wrong",
    "not decided": "doubt",
    "cannot be tested here": "doubt",
    "warning": "doubt",
}  # whole texts of a value or a cell
_BEGINNINGS = {"another update: ": "wrong", "does not run: ": "wrong", "turned (cosine ": "wrong", "no move": "wrong"}


def tone(text: str, said: Callable[[str], str] = str) -> str:
    """Its tone, or "" for a text that is no such word; ``said``: into the language that the text is in.

    >>> tone("holds"), tone("another update: 2 times as long"), tone("a claim holds where")
    ('right', 'wrong', '')
    """
    found = next((role for word, role in TONES.items() if text in (word, said(word))), "")
    return found or next((role for start, role in _BEGINNINGS.items() if text.startswith(start)), "")
