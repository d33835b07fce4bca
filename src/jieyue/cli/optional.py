"""Flags that may stand without a value: ``--unshare`` alone means ``--unshare all``. Typer itself has no such flags."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["ALONE", "with_values"]

ALONE = {"--unshare": "all"}


def with_values(arguments: Sequence[str]) -> list[str]:
    """The arguments, a flag of ``ALONE`` that another flag or nothing follows with its value; what follows ``--`` is left alone.

    >>> with_values(["classify", "--unshare", "--steps", "9"])
    ['classify', '--unshare', 'all', '--steps', '9']
    """
    filled: list[str] = []
    for place, one in enumerate(arguments):
        if one == "--":
            return [*filled, *arguments[place:]]
        filled.append(one)
        if one in ALONE and (place + 1 == len(arguments) or arguments[place + 1].startswith("-")):
            filled.append(ALONE[one])
    return filled
