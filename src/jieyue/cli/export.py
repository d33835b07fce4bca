"""``jieyue export DIR --to onnx --out FILE``: a trained model for programs that know neither torch nor jieyue."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jieyue.errors import InputError, near
from jieyue.record import read_record

from .console import Console, show
from .options import AsJson

__all__ = ["add_to"]


def add_to(app: typer.Typer) -> None:
    """Registers the verb."""
    app.command("export")(export)


def export(
    folder: Annotated[Path, typer.Argument(help="Folder of a trained model.")],
    out: Annotated[Path, typer.Option(help="The file to write, such as model.onnx.")],
    to: Annotated[str, typer.Option("--to", help="The format: onnx.")] = "onnx",
    int8: Annotated[bool, typer.Option("--int8", help="Weights as int8 (approximate); its price is measured.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write OUT anew where it is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a trained model as ONNX, checked for equal outputs; a pattern goes out as its dense mask. Needs jieyue[onnx]."""
    formats = ("onnx",)
    if to not in formats:
        raise InputError(f"--to {to}", repr(to), f"one of {', '.join(formats)}{near(to, formats)}")
    read_record(folder)
    from jieyue.run.export import Exporting, export_onnx

    exported = export_onnx(Exporting(folder=folder, out=out, int8=int8, overwrite=overwrite))
    console = Console(as_json)
    show(console, exported.report())
    console.fact("wrote", path=str(exported.file))
