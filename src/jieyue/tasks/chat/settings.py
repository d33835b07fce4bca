"""What can be chosen of a dialogue model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

from jieyue.data.speakers import parse_roles
from jieyue.errors import InputError, check_least
from jieyue.options import option
from jieyue.tasks.settings import DELIMITER, Settings

__all__ = ["LOSSES", "ChatSettings"]

LOSSES = ("all", "replies", "last")


@dataclass(frozen=True, kw_only=True)
class ChatSettings(Settings):
    """``max_tokens``: of a dialogue, the longest row. ``loss_on``: "all" turns, "replies" or the "last" turn.

    ``row_tokens``: dialogues are packed into rows of so many tokens, none seeing another; None = a row each.
    ``reply_tokens``: the longest reply when judging. ``roles``: of speakers' names (``data.speakers.parse_roles``).
    """

    max_tokens: int = option(512, "Longest dialogue; longer ones lose whole oldest turns.")
    loss_on: str = option("all", "What is learned: all turns, replies or the last turn.")
    row_tokens: int | None = None
    reply_tokens: int = 48
    roles: str | None = option(
        None,
        "Who is who, where names are not known: user=客户,assistant=客服 (also system, tool).",
        metavar="ROLE=NAME,…",
    )
    delimiter: str | None = option(None, DELIMITER)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss_on not in LOSSES:
            raise InputError(f"loss_on={self.loss_on!r}: expected one of {', '.join(LOSSES)}")
        parse_roles(self.roles)
        check_least(4, max_tokens=self.max_tokens, row_tokens=self.row_tokens)
        check_least(1, reply_tokens=self.reply_tokens)

    def changed(self, **given: Any) -> Self:
        """Rows that dialogues share are as long as the longest one may be."""
        if "max_tokens" in given and self.row_tokens is not None:
            given = {"row_tokens": given["max_tokens"], **given}
        return super().changed(**given)

    def fitted(self, positions: int) -> ChatSettings:
        return self if self.max_tokens <= positions else replace(self, max_tokens=positions)
