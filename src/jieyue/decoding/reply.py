"""One reply in the making: from the logits of each step to the next token, the text that is certain, and why it ended."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

from torch import Tensor

from jieyue.errors import InputError

from .sampling import Sampler, Sampling
from .stream import TextStream

__all__ = ["Reply"]


class Reply:
    """``take(logits)`` chooses the next token and gives the new text; ``finish``: None, then "stop" or "length".

    ``seen``: the tokens of the talk so far; ``ends``: tokens that end a reply; ``decode``: ids to text. ``ids``: the reply's
    tokens, its end included. ``stop``: texts at which it ends, left out of the text.
    """

    def __init__(
        self,
        sampling: Sampling,
        seen: Iterable[int],
        *,
        ends: Collection[int],
        decode: Callable[[Sequence[int]], str],
        max_tokens: int,
        stop: Sequence[str] = (),
    ) -> None:
        if max_tokens < 1:
            raise InputError(f"max_tokens={max_tokens}: expected at least 1")
        self.sampler = Sampler(sampling, seen, ends)
        self.max_tokens, self.ends = max_tokens, frozenset(ends)
        self.ids: list[int] = []
        self.finish: str | None = None
        self._stream = TextStream(decode, stop)

    @property
    def text(self) -> str:
        return self._stream.text

    def take(self, logits: Tensor) -> str:
        """The text that the next token, chosen by the logits [V], makes certain."""
        assert self.finish is None
        token = self.sampler(logits)
        self.ids.append(token)
        if token in self.ends:
            self.finish = "stop"
            return self._stream.finish()
        piece = self._stream.add(token)
        if self._stream.stopped:
            self.finish = "stop"
        elif len(self.ids) >= self.max_tokens:
            self.finish = "length"
            piece += self._stream.finish()
        return piece
