"""The flags that several verbs share, each written once; those of settings are told by the settings themselves."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from jieyue.errors import InputError

__all__ = [
    "Allocator",
    "AsJson",
    "BatchSize",
    "BudgetText",
    "ConfigFile",
    "Device",
    "EffectiveBatch",
    "Overwrite",
    "Resume",
    "Show",
    "SkipBad",
    "Strict",
    "writable",
]


def writable(folder: Path | None) -> Path | None:
    """For a flag that names a folder to write: ``InputError`` before anything is measured where it cannot be made or written."""
    if folder is not None:
        place = next(one for one in (folder, *folder.absolute().parents) if one.exists())
        if not place.is_dir():
            raise InputError("out", f"the file {place}", "a folder, or a name that is free")
        if not os.access(place, os.W_OK | os.X_OK):
            raise InputError("out", f"{place}, which cannot be written", "a folder")
    return folder


BudgetText = Annotated[str, typer.Option("--budget", help="Memory for the whole process, such as 1GiB or 800MB.")]
EffectiveBatch = Annotated[int, typer.Option(help="Rows of one update, whatever fits at once.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave broken records out, count and list them.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line on standard output, for machines.")]
BatchSize = Annotated[int, typer.Option(help="Windows read at once.")]
Allocator = Annotated[
    str, typer.Option(help="Malloc: auto (tcmalloc where it is found), tcmalloc, or system (the one that is there).")
]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --out, with the same flags.")]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", metavar="FILE.toml", help="Flags by their names; what is typed holds.")
]
Show = Annotated[bool, typer.Option("--show", help="Tell what would be run, as a file for --config; run nothing.")]
Strict = Annotated[bool, typer.Option("--strict", help="Exit code 1 where a finding is an error.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Train anew in a folder that holds a finished model.")]
