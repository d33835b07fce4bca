"""Settings as flags: what a dataclass says of its fields (``jieyue.options``) becomes what Typer shows and reads."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from jieyue.budget import parse_seconds
from jieyue.errors import InputError
from jieyue.options import Option, options_of

Given = dict[str, Any]
"""What Typer read, by parameter."""

__all__ = ["Given", "chosen", "flag_of", "flags_of", "verb_of"]

_TYPES: dict[str, Any] = {
    "int": int,
    "int | None": int | None,
    "float": float,
    "float | None": float | None,
    "bool": bool,
    "bool | None": bool | None,
    "Path | None": Path | None,
    "Sequence[str | Path]": list[Path] | None,
    "str": str,
}


def _blocks(text: str) -> int:
    """``--unshare``: a number of blocks; 0 for "all", a block for each layer."""
    if text == "all":
        return 0
    if not text.isdecimal() or int(text) < 1:
        raise InputError("--unshare", repr(text), "a number of blocks, or all")
    return int(text)


_READ: dict[str, Callable[[str], Any]] = {
    "seconds": lambda text: parse_seconds(text, "time"),
    "unshare": _blocks,
    "tokens": str,
    "calibration_tokens": str,
    "price_tokens": str,
}
"""Fields that are written as text and mean something else."""


def flag_of(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    """A parameter as Typer reads it."""
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def flags_of(
    settings: type[Any],
    *,
    leave: Sequence[str] = (),
    words: Mapping[str, str] | None = None,
    flags: Mapping[str, str] | None = None,
    defaults: Mapping[str, int | str] | None = None,
    is_open: bool = False,
) -> list[inspect.Parameter]:
    """The flags of a dataclass but for ``leave``; ``words``, ``flags`` and ``defaults`` in place of what its fields say.

    ``is_open``: a flag that is not given is None, so that the task decides; its usual value stands in the help.
    """
    found = []
    for one in options_of(settings):
        if one.name in leave:
            continue
        help = (words or {}).get(one.name, one.help)
        default = (defaults or {}).get(one.name, one.default)
        kind = str | None if one.name in _READ else _TYPES.get(one.kind, str | None)
        if is_open and kind is not bool:
            told = "" if default is None or "efault" in help else f" [default: {default}]"
            help, default, kind = help + told, None, kind | None
        default = None if default == () else default
        found.append(flag_of(one.name, Annotated[kind, _typer_option(one, help, flags or {})], default))
    return found


def _typer_option(one: Option, help: str, flags: Mapping[str, str]) -> Any:
    flag = flags.get(one.name, one.flag)
    names = f"{flag}/{one.off}" if one.off else flag
    return typer.Option(names, help=help, metavar=one.metavar or None)


def chosen(settings: type[Any], given: Given, *, is_open: bool = False) -> Given:
    """Of the values that Typer read those of this dataclass; ``is_open``: without those that were not given."""
    found: Given = {}
    for one in options_of(settings):
        if one.name not in given:
            continue
        value = given[one.name]
        if is_open and (value is None or (value is False and one.kind == "bool")):
            continue
        if value is None and one.default == ():
            value = ()
        found[one.name] = _READ[one.name](value) if one.name in _READ and value is not None else value
    return found


def verb_of(run: Callable[[Given], None], parameters: Sequence[inspect.Parameter], text: str) -> Callable[..., None]:
    """``run(values by name)`` as a verb with these parameters and this help."""

    def called(**given: Any) -> None:
        run(given)

    called.__doc__ = text
    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {one.name: one.annotation for one in parameters}
    return called
