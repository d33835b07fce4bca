"""What can be chosen of a tagger."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from jieyue.errors import InputError
from jieyue.json_values import Facts
from jieyue.options import option
from jieyue.tasks.settings import Settings

__all__ = ["TagSettings"]


@dataclass(frozen=True, kw_only=True)
class TagSettings(Settings):
    """``max_tokens``: of a window, special tokens included. ``types``: of entities, in order; () until the data are read.

    ``tag_column``: of CoNLL files, from 1; None = the last.
    """

    max_tokens: int = option(128, "Tokens of a window, special ones included; longer texts are read by several.")
    tag_column: int | None = option(None, "CoNLL: the tag's column, from 1. Default: the last.")
    types: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_tokens < 8 or (self.tag_column is not None and self.tag_column < 2):
            raise InputError(
                f"max_tokens={self.max_tokens}, tag_column={self.tag_column}: expected at least 8, and 2 or more"
            )

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
