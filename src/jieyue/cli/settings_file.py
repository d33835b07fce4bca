"""``--config FILE.toml``: flags from a file, by their names; ``--show``: the flags that hold, as such a file, and nothing is run."""

from __future__ import annotations

import inspect
import json
import tomllib
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from typer.core import TyperOption

from jieyue.errors import InputError, near

if TYPE_CHECKING:
    from typer._click import Parameter  # Typer's own; earlier versions take click's

    from .flags import Given

__all__ = ["settings_text", "told", "with_settings"]

Toml = str | int | float | bool | date | list["Toml"] | dict[str, "Toml"]
_NOT_IN_FILES = ("config", "show", "help")


def with_settings(arguments: Sequence[str], parameters: Sequence[Parameter]) -> list[str]:
    """The arguments with the file's flags before them; a flag that was typed holds, and replaces a list of the file whole.

    ``parameters``: the verb's, as Typer made them. ``InputError`` for a file that is no TOML and for names that are no flags.
    """
    path = _file_of(arguments)
    if path is None:
        return list(arguments)
    flags = {
        opt.removeprefix("--"): one
        for one in parameters
        if isinstance(one, TyperOption)
        for opt in one.opts
        if opt.startswith("--") and opt.removeprefix("--") not in _NOT_IN_FILES
    }
    typed = {one.partition("=")[0] for one in arguments if one.startswith("--")}
    found: list[str] = []
    for key, value in _read(path).items():
        name = key.replace("_", "-")
        if name not in flags:
            raise InputError(f"{path}", f"the name {key!r}", f"this verb's flags{near(name, flags)}")
        one = flags[name]
        if not typed & {*one.opts, *one.secondary_opts}:
            found += _arguments(one, value, f"{path}: {key}")
    return [*found, *arguments]


def _file_of(arguments: Sequence[str]) -> Path | None:
    for place, one in enumerate(arguments):
        name, given, value = one.partition("=")
        if one == "--":
            return None
        if name == "--config":
            return Path(value if given else next(iter(arguments[place + 1 :]), ""))
    return None


def _read(path: Path) -> Mapping[str, Toml]:
    if not path.is_file():
        names = [one.name for one in path.parent.glob("*.toml")] if path.parent.is_dir() else []
        raise InputError("--config", f"no file {path}", f"a TOML file{near(path.name, names)}")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"--config {path}", f"what is not TOML ({error})", "lines such as steps = 300") from None


def _arguments(flag: TyperOption, value: Toml, where: str) -> list[str]:
    """A value of the file as one would type it."""
    name = next(one for one in flag.opts if one.startswith("--"))
    if flag.is_flag:
        if not isinstance(value, bool):
            raise InputError(where, repr(value), "true or false")
        return [name] if value else list(flag.secondary_opts[:1])
    values = value if isinstance(value, list) else [value]
    several = flag.multiple
    if isinstance(value, list) and not several:
        raise InputError(where, "a list", "one value")
    for one in values:
        if isinstance(one, bool) or not isinstance(one, str | int | float):
            raise InputError(where, repr(one), "a text or a number" + (", or a list of them" if several else ""))
    return [f"{name}={one}" for one in values]


def settings_text(command: str, parameters: Sequence[inspect.Parameter], given: Given) -> str:
    """The flags that hold, as a file for ``--config``; those that are decided later stand as comments, with their help."""
    lines = [f"# jieyue {command} --config THIS_FILE"]
    later: list[str] = []
    for name, (flag, help) in told(parameters).items():
        if name in _NOT_IN_FILES or not flag:
            continue
        value = given.get(name)
        if value is None or value == ():
            later.append(f"# {flag} = …  {help}")
        else:
            lines.append(f"{flag} = {_toml(value)}")
    return "\n".join([*lines, *(["# decided later, or by the task:"] if later else []), *later])


def told(parameters: Sequence[inspect.Parameter]) -> dict[str, tuple[str, str]]:
    """(the flag without its dashes, its help) of each parameter; no flag for an argument."""
    found = {}
    for one in parameters:
        info = get_args(one.annotation)[1]
        names = [
            str(name).split("/")[0] for name in (info.default, *(info.param_decls or ()))
        ]  # Typer's first is in default
        is_argument = type(info).__name__ == "ArgumentInfo"
        flag = next((name for name in names if name.startswith("--")), "--" + one.name.replace("_", "-"))
        found[one.name] = ("" if is_argument else flag.removeprefix("--"), info.help or "")
    return found


def _toml(value: Toml | Path) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value) if isinstance(value, int | float) else json.dumps(str(value), ensure_ascii=False)
