"""One reply in the making: from the logits of each step to the next token, the text that is certain, and why it ended."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jieyue.errors import InputError

from .sampling import Sampler, Sampling
from .stream import TextStream

__all__ = ["Chance", "Reply"]


@dataclass(frozen=True, slots=True)
class Chance:
    """A token that was said, log p of it, and the likeliest tokens there with their log p, likeliest first."""

    token: int
    log_probability: float
    likeliest: tuple[tuple[int, float], ...]


class Reply:
    """``take(logits)`` chooses the next token and gives the new text; ``finish``: None, then "stop" or "length".

    ``seen``: the tokens of the talk so far; ``ends``: tokens that end a reply; ``decode``: ids to text. ``ids``: the reply's
    tokens, its end included. ``stop``: texts at which it ends, left out of the text. ``num_before``: how many of the last
    tokens seen are the beginning of this reply, which goes on from there.

    ``num_likeliest`` not None: ``chances`` holds, for each token but an end, its log-probability under the model (before
    temperature and penalties) and the so many likeliest tokens with theirs.
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
        num_before: int = 0,
        num_likeliest: int | None = None,
    ) -> None:
        if max_tokens < 1:
            raise InputError(f"max_tokens={max_tokens}: expected at least 1")
        seen = list(seen)
        self.sampler = Sampler(sampling, seen, ends)
        self.max_tokens, self.ends = max_tokens, frozenset(ends)
        self.ids: list[int] = []
        self.finish: str | None = None
        self.num_likeliest = num_likeliest
        self.chances: list[Chance] = []
        self._stream = TextStream(decode, stop, seen[len(seen) - num_before :])

    @property
    def text(self) -> str:
        return self._stream.text

    def take(self, logits: Tensor) -> str:
        """The text that the next token, chosen by the logits [V], makes certain."""
        assert self.finish is None
        token = self.sampler(logits)
        self.ids.append(token)
        if self.num_likeliest is not None and token not in self.ends:
            self.chances.append(_chance(logits, token, self.num_likeliest))
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


def _chance(logits: Tensor, token: int, count: int) -> Chance:
    logs = logits.detach().to("cpu", torch.float32).log_softmax(-1)
    values, tokens = logs.topk(min(count, len(logs)))
    return Chance(token, float(logs[token]), tuple(zip(tokens.tolist(), values.tolist(), strict=True)))
