"""What can be chosen when a model is trained under a sparse attention."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from jieyue.errors import InputError
from jieyue.options import option
from jieyue.tasks.settings import Settings

__all__ = ["DISTILLED", "KINDS", "LEAST_TOKENS", "TRAINED", "SparseSettings"]

KINDS = {"causal": "causal-lm", "masked": "masked-lm", "encoder": "saved"}
"""kind of model -> the head it is opened with: the next token, hidden tokens, no head at all."""
TRAINED = ("all", "qkvo", "adapters")
DISTILLED = ("none", "outputs", "means", "logits")
LEAST_TOKENS = 16


@dataclass(frozen=True, kw_only=True)
class SparseSettings(Settings):
    """``row_tokens``: of a row; every row is full. ``kind``: of ``KINDS``. ``train``: what is trained (``TRAINED``; adapters are of
    rank ``rank``). ``distill``: learn from the model ``teacher`` under full attention in place of the text: the outputs of its
    layers, these and each row's mean state, or its logits. ``share``: of a masked model's tokens that are hidden.
    ``judged_tokens``: of held-out text that judging reads, at most.
    """

    row_tokens: int = option(2048, "Tokens of a row; at most the model's positions.")
    train: str = option("all", "What is trained: all weights, qkvo (attention's matrices) or adapters.", metavar="WHAT")
    distill: str = option(
        "none",
        "Learn from the full model: none (the text), outputs (of every layer), means (outputs, and each row's mean state) or logits.",
        metavar="WHAT",
    )
    rank: int = option(8, "Of the adapters.")
    kind: str = "causal"
    teacher: str | None = None
    share: float = 0.15
    judged_tokens: int = 65_536
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.row_tokens < LEAST_TOKENS or self.rank < 1 or not 0 < self.share < 0.9:
            found = f"row_tokens={self.row_tokens}, rank={self.rank}, share={self.share}"
            raise InputError(f"{found}: expected at least {LEAST_TOKENS}, at least 1, and a share between 0 and 0.9")
        for name, allowed in (("kind", tuple(KINDS)), ("train", TRAINED), ("distill", DISTILLED)):
            if getattr(self, name) not in allowed:
                found = repr(getattr(self, name))
                raise InputError(f"{name}={found}", found, f"one of {', '.join(allowed)}")
        if self.distill == "logits" and self.kind == "encoder":
            raise InputError("distill='logits'", "an encoder without a head", "distill='means'")

    def head(self, default: str) -> str:
        return KINDS[self.kind]

    def fitted(self, positions: int) -> Self:
        """These settings with shorter rows where the model has fewer ``positions``."""
        return replace(self, row_tokens=min(self.row_tokens, positions))
