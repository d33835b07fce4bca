"""``jieyue push DIR OWNER/NAME``: a trained model to the hub, with a card that quotes nothing from the data unless asked to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jieyue.record import read_record

from .console import Console
from .options import AsJson

__all__ = ["add_to"]


def add_to(app: typer.Typer) -> None:
    """Registers the verb."""
    app.command("push")(push)


def push(
    folder: Annotated[Path, typer.Argument(help="Folder of a trained model.")],
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The repository on the hub.")],
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
    license: Annotated[
        str | None,
        typer.Option(
            metavar="ID",
            help="The model's licence, such as apache-2.0. Default: that of the base model's card, or none.",
        ),
    ] = None,
    quote: Annotated[
        bool, typer.Option("--quote", help="Send the examples from the data that card and reports show.")
    ] = False,
    card: Annotated[Path | None, typer.Option(help="A card of your own, in place of the one that is written.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would go up; send nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Send a trained model to the hub: what goes up is listed first, data and checkpoints stay here."""
    read_record(folder)
    from jieyue.run.push import push as send

    console = Console(as_json)
    pushed = send(
        folder, repository, private=private, license=license, quote=quote, card=card, dry_run=dry_run, listener=console
    )
    if pushed.url:
        console.fact("pushed", url=pushed.url)
    else:
        console.say("Nothing was sent")
