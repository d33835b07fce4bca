"""What a task's frozen dataclass of settings can do beside naming them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self

from jieyue.errors import InputError
from jieyue.json_values import Facts
from jieyue.options import check_kinds, option

__all__ = ["DELIMITER", "PackedSettings", "Settings"]

DELIMITER = "What parts a table's columns: tab, comma, semicolon, bar or a character. Default: told from all rows."
_OF_NOW = (
    "encoding",
    "delimiter",
    "packed",
)  # of the files that are read now, and of how training computes: not of the model


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The base of every task's settings; its fields are made by ``jieyue.options.option`` where they are flags as well.

    ``encoding``: of the files, None = found and named. It and ``delimiter`` are not kept with a model.
    """

    encoding: str | None = option(None, "The files' encoding, such as gb18030 or shift_jis. Default: found, and named.")

    def __post_init__(self) -> None:
        check_kinds(self)

    def head(self, default: str) -> str:
        """The model's head under these settings, of ``hf.loading.HEADS``; ``default`` is the task's own."""
        return default

    def packing(self) -> bool | None:
        """Whether training packs several rows into one: None = where much would be padding."""
        return False

    def fitted(self, positions: int) -> Self:
        """These settings, cut to a model of so many ``positions``; ``InputError`` where that leaves nothing to work with."""
        return self

    def changed(self, **given: Any) -> Self:
        """These settings with some of them given, and what follows from those."""
        return replace(self, **given)

    def to_dict(self) -> Facts:
        """JSON values of what is kept with a model."""
        return {name: value for name, value in asdict(self).items() if name not in _OF_NOW}

    @classmethod
    def from_dict(cls, values: Facts) -> Self:
        """``InputError`` names what is not a setting of this task."""
        known = [field.name for field in fields(cls)]
        if unknown := sorted(set(values) - set(known)):
            raise InputError(cls.__name__, ", ".join(unknown), ", ".join(known))
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class PackedSettings(Settings):
    """Of tasks whose short rows may share a long one (``hf.packed_rows``). ``packed``: True where a model that cannot is refused, None
    where padding exceeds 20 % of all positions and the model can, False never. It is not kept with a model.
    """

    packed: bool | None = option(
        None,
        "Short rows share a long one in training, none sees another (exact). Default: where more than 20 % is padding.",
        off="--no-packed",
    )

    def packing(self) -> bool | None:
        return self.packed
