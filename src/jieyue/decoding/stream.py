"""Text of a reply while its tokens come: what is said never changes afterwards, lines stay, and Chinese has no stray spaces.

A piece is given out as soon as no later token can change it: not in the middle of a character that is several tokens, not a
last space that the next token may swallow, not the beginning of a stop word. The tokenizer is passed in as ``decode(ids)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jieyue.text import join_pieces

__all__ = ["TextStream"]

_BROKEN = "\ufffd"


class TextStream:
    """``add(token)`` gives the text that is now certain, ``finish()`` the rest; ``text`` is all that was given out.

    ``stop``: texts at which the reply ends, themselves left out; ``stopped`` tells that one came. ``before``: tokens that the
    reply goes on from, where it does; then its first space stays.

    >>> stream = TextStream(lambda ids: "".join("ab c"[i] for i in ids), stop=["c"])
    >>> [stream.add(token) for token in (0, 1, 2, 3)], stream.finish(), stream.stopped
    (['a', 'b', '', ''], '', True)
    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], stop: Sequence[str] = (), before: Sequence[int] = ()
    ) -> None:
        self._decode, self.stop = decode, [word for word in stop if word]
        self._ids = [int(token) for token in before]
        self._is_begun = bool(before)
        self._first = 0  # tokens from here on are decoded with the new ones, for what a decoder does at borders
        self._said_ids = len(before)  # tokens whose text was taken
        self._held = ""  # text that is certain but may be the beginning of a stop word, or ends with a space
        self.text, self.stopped = "", False

    def add(self, token: int) -> str:
        self._ids.append(int(token))
        before = self._decoded(self._ids[self._first : self._said_ids])
        after = self._decoded(self._ids[self._first :])
        if after.endswith(_BROKEN) or not after.startswith(before):
            return ""
        self._first, self._said_ids = self._said_ids, len(self._ids)
        return self._give(after[len(before) :], last=False)

    def finish(self) -> str:
        """What was held back; a broken character at the very end is left out."""
        before = self._decoded(self._ids[self._first : self._said_ids])
        after = self._decoded(self._ids[self._first :])
        rest = after[len(before) :].rstrip(_BROKEN) if after.startswith(before) else ""
        return self._give(rest, last=True)

    def _decoded(self, ids: Sequence[int]) -> str:
        if not ids:
            return ""
        text = self._decode(ids)
        left = text[: len(text) - len(text.lstrip())]
        right = text[len(text.rstrip()) :] if text.strip() else ""
        return left + join_pieces(text) + right

    def _give(self, piece: str, last: bool) -> str:
        if self.stopped:
            return ""
        text = self._held + piece
        if not self.text and not self._is_begun:
            text = text.lstrip()
        ends = [at for word in self.stop if (at := text.find(word)) >= 0]
        if ends:
            text, self.stopped, last = text[: min(ends)], True, True
        kept = 0 if last else max([_overlap(text, word) for word in self.stop], default=0)
        kept = max(kept, 0 if last else len(text) - len(text.rstrip()))
        given, self._held = text[: len(text) - kept], text[len(text) - kept :] if kept else ""
        given = given.rstrip() if last else given
        self.text += given
        return given


def _overlap(text: str, word: str) -> int:
    """How many characters at the end of the text are the beginning of the word."""
    return next((n for n in range(min(len(text), len(word) - 1), 0, -1) if text.endswith(word[:n])), 0)
