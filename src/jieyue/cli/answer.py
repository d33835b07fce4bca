"""The verbs that use a trained model: ``evaluate`` judges it, ``read`` asks it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from jieyue.errors import InputError
from jieyue.record import read_record

from .console import Console, decoded, read_text, show
from .options import AsJson, BatchSize, SkipBad, writable

__all__ = ["add_to"]


def add_to(app: typer.Typer) -> None:
    """Registers every verb."""
    app.command("evaluate")(evaluate)
    app.command("read")(read)


def evaluate(
    folder: Annotated[Path, typer.Argument(help="Folder of a trained model.")],
    files: Annotated[
        list[Path] | None, typer.Argument(help="Examples to judge by. Default: the held-out part that ships.")
    ] = None,
    batch_size: BatchSize = 32,
    skip_bad: SkipBad = False,
    encoding: Annotated[str | None, typer.Option(help="The files' encoding. Default: found, and named.")] = None,
    delimiter: Annotated[str | None, typer.Option(help="What parts a table's columns. Default: found.")] = None,
    roles: Annotated[str | None, typer.Option(help="Dialogues: who is who, user=NAME,assistant=NAME.")] = None,
    out: Annotated[Path | None, typer.Option(callback=writable, help="Folder for a report of this evaluation.")] = None,
    as_json: AsJson = False,
) -> None:
    """Judge a trained model on examples with known answers; the folder says which task it is for."""
    from jieyue.tasks.config import RunConfig

    RunConfig(data=files or ())  # files and folders that are not there are told before anything slow is imported
    read_record(folder)
    if out is not None and out.resolve() == folder.resolve():
        found = f"{out}, the model's own folder, whose report tells of its training"
        raise InputError("out", found, "another folder")
    from jieyue.run.jobs import evaluate as judge

    console = Console(as_json)
    reading = {"encoding": encoding, "delimiter": delimiter, "roles": roles}
    report = judge(folder, files or (), batch_size=batch_size, skip_bad=skip_bad, reading=reading, listener=console)
    show(console, report, out=out)


def read(
    folder: Annotated[Path, typer.Argument(help="Folder of a trained reader.")],
    question: Annotated[str, typer.Option(help="The question.")],
    text: Annotated[list[str] | None, typer.Option(help="A passage; several vote.")] = None,
    file: Annotated[
        list[Path] | None, typer.Option(help="A file with a passage; several vote. Default: standard input.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Answer a question from passages: text, files or standard input."""
    read_record(folder, "read")
    passages = [*(text or ()), *(read_text(path) for path in file or ())]
    if not passages:
        if sys.stdin.isatty():
            raise InputError("read: found no passage, expected --text, --file or a passage on standard input")
        passages = [decoded(sys.stdin.buffer.read(), "standard input")]
    from jieyue.tasks.read.asking import read as ask

    answer = ask(folder, question, passages)
    if as_json:
        sys.stdout.write(json.dumps(answer, ensure_ascii=False) + "\n")
        return
    console = Console()
    if not answer["answer"]:
        console.say(f"(no answer in the passage; confidence {answer['confidence']:.2f})")
        return
    console.print(answer["answer"])
    where = f"passage {answer['passage'] + 1}, " if len(passages) > 1 else ""
    console.say(f"  {where}characters {answer['start']}–{answer['end']}, confidence {answer['confidence']:.2f}")
