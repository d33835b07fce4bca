"""What can be chosen of a tagger."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from jieyue.errors import InputError, check_least
from jieyue.json_values import Facts
from jieyue.options import option
from jieyue.tasks.settings import PackedSettings

__all__ = ["TagSettings"]


@dataclass(frozen=True, kw_only=True)
class TagSettings(PackedSettings):
    """``max_tokens``: of a window, special tokens included. ``types``: of entities, in order; () until the data are read.

    ``tag_column``: of CoNLL files, a number from 1 or a name; None = the last.
    """

    max_tokens: int = option(128, "Tokens of a window, special ones included; longer texts are read by several.")
    tag_column: str | None = option(None, "CoNLL: the tag's column, a number from 1 or its name. Default: the last.")
    types: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.tag_column is not None:  # a number too, as older folders have it
            object.__setattr__(self, "tag_column", str(self.tag_column).strip())
        super().__post_init__()
        check_least(8, max_tokens=self.max_tokens)
        column = self.tag_column
        if column == "" or (column is not None and column.lstrip("-").isdecimal() and int(column) < 2):
            raise InputError(f"tag_column={column!r}: expected 2 or more (the first has the word), or a name")

    @property
    def tags(self) -> list[str]:
        """The tags that the model tells apart: O, then B and I of each type."""
        return ["O", *(f"{mark}-{kind}" for kind in self.types for mark in "BI")]

    def fitted(self, positions: int) -> Self:
        """These settings with shorter windows where the model has fewer ``positions``."""
        return replace(self, max_tokens=min(self.max_tokens, positions))

    def to_dict(self) -> Facts:
        return super().to_dict() | {"types": list(self.types)}

    @classmethod
    def from_dict(cls, values: Facts) -> Self:
        return super().from_dict({**values, "types": tuple(values.get("types", ()))})
