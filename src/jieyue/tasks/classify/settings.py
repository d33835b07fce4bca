"""What can be chosen of a classifier."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from jieyue.errors import InputError
from jieyue.json_values import Facts
from jieyue.options import option
from jieyue.tasks.settings import DELIMITER, Settings

__all__ = ["ClassifySettings"]


@dataclass(frozen=True, kw_only=True)
class ClassifySettings(Settings):
    """``max_tokens``: of a row, special tokens included. ``labels``: all of them, in order; () until the data are read.

    ``text_column``, ``label_column``, ``pair_column``: names or numbers (``data.labelled.Columns``), None = found by name.
    """

    max_tokens: int = option(128, "Tokens of a row, special ones included.")
    labels: tuple[str, ...] = ()
    text_column: str | None = option(None, "The text's column: a name, or a number from 1.")
    label_column: str | None = option(None, "The label's column: a name or a number.")
    pair_column: str | None = option(None, "A second text's column: a name or a number.")
    delimiter: str | None = option(None, DELIMITER)

    def __post_init__(self) -> None:
        if self.max_tokens < 4:
            raise InputError(f"max_tokens={self.max_tokens}: expected at least 4")

    def fitted(self, positions: int) -> Self:
        """These settings with shorter rows where the model has fewer ``positions``."""
        return replace(self, max_tokens=min(self.max_tokens, positions))

    def to_dict(self) -> Facts:
        return super().to_dict() | {"labels": list(self.labels)}

    @classmethod
    def from_dict(cls, values: Facts) -> Self:
        return super().from_dict({**values, "labels": tuple(values.get("labels", ()))})
