"""A model card: the README.md that stands in a model's folder, with the report's own numbers and the exact command.

Its YAML header is that of the hub; strings are written as JSON strings, which YAML reads as they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from jieyue.errors import InputError

if TYPE_CHECKING:
    from .document import Report

__all__ = ["Entry", "model_card"]

Entry = str | Sequence[str]
"""What the hub's header may hold under a name."""


def model_card(
    report: Report,
    *,
    command: str | Sequence[str],
    header: Mapping[str, Entry] | None = None,
    usage: str = "",
    limits: str = "",
) -> str:
    """Markdown with a YAML header: the command, the use, the limits, then every section of the report.

    ``command``: the exact command line, as one text or as its arguments (quoted then); ``header``: further entries of the
    hub's header (``language``, ``tags``, ``pipeline_tag``, ``base_model``, ``datasets``, ``license``), texts or lists of texts;
    ``usage``: Python code; ``limits``: plain text. Numbers are the report's: none is computed here. No licence is made up: without
    one in ``header`` the card has none.
    """
    import shlex

    entries: dict[str, Entry] = {
        "library_name": "transformers",
        "tags": ["jieyue"],
        **(header or {}),
    }
    lines = ["---"]
    for name, value in entries.items():
        if not (name.isidentifier() and isinstance(value, str | list | tuple)):
            raise InputError(
                f"model_card(header={{{name!r}: {value!r}}}): expected a plain name with a text or a list of texts"
            )
        lines += (
            [f"{name}: {_yaml(value)}"] if isinstance(value, str) else [f"{name}:", *(f"- {_yaml(v)}" for v in value)]
        )
    line = command if isinstance(command, str) else shlex.join(command)
    body = report.markdown()
    head, _, rest = body.partition("\n\n## ")
    parts = ["\n".join([*lines, "---"]), head.strip(), "Made with", _fenced(line, "bash")]
    if usage:
        parts += ["## Use", _fenced(usage, "python")]
    if limits:
        from .plaintext import escape

        parts += ["## Limits", "\n\n".join(escape(part) for part in limits.split("\n\n"))]
    return "\n\n".join(parts + ([f"## {rest}"] if rest else [])).rstrip() + "\n"


def _yaml(value: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"model_card(header=...): found {value!r} in a list, expected a text")
    plain = value and all(char.isascii() and (char.isalnum() or char in "-./") for char in value) and value[0].isalpha()
    return (
        value
        if plain and value.lower() not in ("yes", "no", "true", "false", "null", "on", "off", "y", "n")
        else json.dumps(value)
    )


def _fenced(code: str, language: str) -> str:
    fence = "```"
    while fence in code:
        fence += "`"
    return f"{fence}{language}\n{code.strip()}\n{fence}"
