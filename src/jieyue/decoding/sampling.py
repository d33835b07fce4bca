"""How the next token is chosen: temperature, top-k, top-p, min-p, penalties for repeating, a least length, and a seed.

Order: frequency and presence penalty (OpenAI's), then transformers' own order: repetition penalty, no repeated n-gram, least
length, temperature, top-k, top-p, min-p; then one draw from what remains. Every talk has a ``Sampler`` of its own, so the same
seed says the same thing alone or in a batch. A step costs one pass over the logits and a sort of the top-k (of all V
without top-k).
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from jieyue.errors import InputError

__all__ = ["Sampler", "Sampling"]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """``temperature`` 0 = always the likeliest; ``top_k`` 0, ``top_p`` 1, ``min_p`` 0 = no limit. The default is the article's.

    ``repetition_penalty`` > 1 makes tokens of the talk so far less likely; ``frequency_penalty`` is taken off a token's logit
    once for each time that the reply has said it, ``presence_penalty`` once if it has; ``no_repeat_ngram`` n forbids to say
    the same n tokens twice; ``min_tokens``: the reply cannot end before. ``seed`` None = another one each time.
    """

    temperature: float = 1.0
    top_k: int = 5
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    no_repeat_ngram: int = 0
    min_tokens: int = 0
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, low, high in (
            ("temperature", 0.0, 100.0),
            ("top_k", 0, 10**9),
            ("min_p", 0.0, 1.0),
            ("frequency_penalty", -2.0, 2.0),
            ("presence_penalty", -2.0, 2.0),
            ("no_repeat_ngram", 0, 1000),
            ("min_tokens", 0, 10**9),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise InputError(f"{name}={value}: expected from {low} to {high:g}")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p={self.top_p}: expected above 0, at most 1")
        if not 0 < self.repetition_penalty <= 100:
            raise InputError(f"repetition_penalty={self.repetition_penalty}: expected above 0, at most 100")
        if self.seed is not None and not -(2**63) <= self.seed < 2**63:
            raise InputError(f"seed={self.seed}: expected a whole number of 64 bits")


class Sampler:
    """Chooses the tokens of one reply. ``seen``: the talk so far; ``ends``: the tokens that end a reply.

    >>> sampler = Sampler(Sampling(temperature=0), seen=[3])
    >>> sampler(torch.tensor([0.0, 2.0, 1.0]))
    1
    """

    def __init__(self, settings: Sampling, seen: Iterable[int] = (), ends: Collection[int] = ()) -> None:
        self.settings = settings
        self.ends = [int(end) for end in ends]
        self.seed = secrets.randbits(63) if settings.seed is None else settings.seed
        self.num_said = 0
        self._random = torch.Generator().manual_seed(self.seed)
        self._seen: set[int] = set()
        self._said: Counter[int] = Counter()
        self._last: list[int] = []
        self._followers: dict[tuple[int, ...], list[int]] = {}
        for token in seen:
            self._note(int(token))

    def __call__(self, logits: Tensor) -> int:
        """The next token by the logits [V]; it counts as said."""
        token = self._drawn(self._allowed(logits.detach().to("cpu", torch.float32)))
        self.num_said += 1
        self._said[token] += 1
        self._note(token)
        return token

    def distribution(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """(tokens, probabilities) that the next draw has, likeliest first; nothing counts as said."""
        return self._kept(self._allowed(logits.detach().to("cpu", torch.float32)))

    def _note(self, token: int) -> None:
        self._seen.add(token)
        count = self.settings.no_repeat_ngram
        if count:
            self._last.append(token)
            if len(self._last) > count:
                del self._last[0]
            if len(self._last) == count:
                self._followers.setdefault(tuple(self._last[:-1]), []).append(token)

    def _allowed(self, logits: Tensor) -> Tensor:
        """Penalties and what may not be said."""
        settings, penalty = self.settings, self.settings.repetition_penalty
        if self._said and (settings.frequency_penalty or settings.presence_penalty):
            index, counts = torch.tensor(list(self._said)), torch.tensor(list(self._said.values()))
            taken = settings.frequency_penalty * counts + settings.presence_penalty
            logits = logits.index_put((index,), logits[index] - taken.to(logits))
        banned: list[int] = []
        if self.num_said < settings.min_tokens:
            banned += self.ends
        if settings.no_repeat_ngram:
            before = tuple(self._last[len(self._last) - settings.no_repeat_ngram + 1 :])
            if len(before) == settings.no_repeat_ngram - 1:
                banned += self._followers.get(before, [])
        if penalty != 1.0 and self._seen:
            index = torch.tensor(sorted(self._seen))
            own = logits[index]
            logits = logits.index_put((index,), torch.where(own < 0, own * penalty, own / penalty))
        if banned:
            logits = logits.index_fill(0, torch.tensor(banned), -torch.inf)
        if not bool(torch.isfinite(logits).any()):  # nothing may be said: end
            logits = torch.full_like(logits, -torch.inf).index_fill(0, torch.tensor(self.ends or [0]), 0.0)
        return logits

    def _kept(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        settings = self.settings
        if settings.temperature == 0:
            return logits.argmax()[None], torch.ones(1, dtype=torch.float64)
        count = min(settings.top_k or len(logits), len(logits))
        values, tokens = logits.topk(count) if count < len(logits) else logits.sort(descending=True, stable=True)
        chances = (values.double() / max(settings.temperature, 1e-4)).softmax(-1)
        if settings.top_p < 1:  # the fewest tokens whose chances reach top_p
            before = chances.cumsum(-1) - chances
            chances = torch.where(before < settings.top_p, chances, 0.0)
            chances = chances / chances.sum()
        if settings.min_p > 0:
            chances = torch.where(chances >= settings.min_p * chances[0], chances, 0.0)
        kept = chances > 0
        return tokens[kept], chances[kept] / chances[kept].sum()

    def _drawn(self, logits: Tensor) -> int:
        tokens, chances = self._kept(logits)
        if len(tokens) == 1:
            return int(tokens[0])
        at = torch.searchsorted(chances.cumsum(-1), torch.rand(1, generator=self._random, dtype=torch.float64))
        return int(tokens[min(int(at), len(tokens) - 1)])
