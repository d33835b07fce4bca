"""An option of a settings dataclass: its default, and what the command line and the documents say of it. Told once, here.

>>> from dataclasses import dataclass
>>> @dataclass(frozen=True, kw_only=True)
... class Lengths:
...     max_tokens: int = option(128, "Tokens of a row, special ones included.")
>>> (found,) = options_of(Lengths)
>>> found.name, found.flag, found.default
('max_tokens', '--max-tokens', 128)
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import InputError

if TYPE_CHECKING:
    from typing import Any

    from _typeshed import DataclassInstance

__all__ = ["Option", "check_kinds", "option", "options_of"]

_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "bool": ((bool,), "True or False"),
    "str": ((str,), "a text"),
    "Path": ((str, Path), "a path"),
}


@dataclass(frozen=True)
class Option:
    """One field of a dataclass as a flag: ``kind`` its type as written, ``off`` the flag that says no, "" where there is none."""

    name: str
    kind: str
    flag: str
    help: str
    metavar: str
    off: str
    default: Any


def option(default: Any, help: str, *, flag: str = "", metavar: str = "", off: str = "") -> Any:
    """A dataclass field with this default. ``help``: one sentence or two; ``flag``: where it is not the field's name."""
    return field(default=default, metadata={"help": help, "flag": flag, "metavar": metavar, "off": off})


def options_of(settings: type[Any]) -> list[Option]:
    """The fields made by ``option``, in order; a field without help is no flag."""
    return [
        Option(
            one.name,
            str(one.type),
            one.metadata["flag"] or "--" + one.name.replace("_", "-"),
            one.metadata["help"],
            one.metadata["metavar"],
            one.metadata["off"],
            one.default,
        )
        for one in fields(settings)
        if "help" in one.metadata
    ]


def check_kinds(settings: DataclassInstance) -> None:
    """``InputError`` for an option whose value is of another type than its field's, before anything computes with it.

    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True, kw_only=True)
    ... class Lengths:
    ...     max_tokens: int | None = option(128, "Tokens of a row, special ones included.")
    >>> check_kinds(Lengths(max_tokens="64"))
    Traceback (most recent call last):
    jieyue.errors.InputError: max_tokens: found '64', expected a whole number or None
    """
    for one in options_of(type(settings)):
        name, _, none = one.kind.partition(" | ")
        value = getattr(settings, one.name)
        if name not in _KINDS or none not in ("", "None") or (value is None and none):
            continue
        kinds, told = _KINDS[name]
        if not isinstance(value, kinds) or (isinstance(value, bool) and name != "bool"):
            raise InputError(one.name, repr(value), told + (" or None" if none else ""))
