"""The flags that several verbs share, each written once; those of settings are told by the settings themselves."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = [
    "Allocator",
    "AsJson",
    "BatchSize",
    "BudgetText",
    "Device",
    "EffectiveBatch",
    "Overwrite",
    "Resume",
    "SkipBad",
]

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
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Train anew in a folder that holds a finished model.")]
