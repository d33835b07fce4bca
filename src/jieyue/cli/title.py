"""``jieyue title DIR``: titles for texts by a trained model."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from jieyue.errors import InputError
from jieyue.record import read_record

from .console import Console, decoded, read_text
from .options import AsJson

__all__ = ["add_to"]

Beams = Annotated[int | None, typer.Option(help="Hypotheses of the search (default 3); 1 = greedy.")]


def add_to(app: typer.Typer) -> None:
    """Registers every verb."""
    app.command("title")(title)


def title(
    folder: Annotated[Path, typer.Argument(help="Folder of a trained writer of titles.")],
    text: Annotated[list[str] | None, typer.Option(help="A text; several give several titles.")] = None,
    file: Annotated[list[Path] | None, typer.Option(help="A file with a text. Default: standard input.")] = None,
    beams: Beams = None,
    as_json: AsJson = False,
) -> None:
    """Write a title for each text, file, or standard input."""
    read_record(folder, "title")
    texts = [*(text or ()), *(read_text(path) for path in file or ())]
    if not texts:
        if sys.stdin.isatty():
            raise InputError("title: found no text, expected --text, --file or a text on standard input")
        texts = [decoded(sys.stdin.buffer.read(), "standard input")]
    from jieyue.tasks.title.task import write

    console = Console()
    for found in write(folder, texts, **({} if beams is None else {"beams": beams})):
        if as_json:
            sys.stdout.write(json.dumps(found, ensure_ascii=False) + "\n")
        else:
            console.print(found["title"])
