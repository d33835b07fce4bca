"""``jieyue predict DIR FILE --out OUT``: a trained model's answers to a file of rows; ``jieyue classify|tag DIR``: to some texts."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from jieyue.errors import InputError
from jieyue.listener import SILENT
from jieyue.record import read_record

from .console import Console, decoded
from .options import AsJson

__all__ = ["add_to"]

Folder = Annotated[Path, typer.Argument(help="Folder of a trained model.")]
Rows = Annotated[int, typer.Option("--batch-size", help="Rows of a forward pass.")]
Where = Annotated[str, typer.Option(help="cpu or cuda.")]
Texts = Annotated[list[str] | None, typer.Option(help="A text; more than once for several. Default: standard input.")]


def add_to(app: typer.Typer) -> None:
    """Registers every verb."""
    app.command("predict")(predict)
    app.command("classify")(classify)
    app.command("tag")(tag)


def predict(
    folder: Folder,
    file: Annotated[
        Path, typer.Argument(help="JSON lines, or CSV/TSV with a header, plain or packed; - for standard input.")
    ],
    out: Annotated[Path, typer.Option(help="JSON lines, or CSV/TSV by the name's end; - for standard output.")],
    encoding: Annotated[str | None, typer.Option(help="The files' encoding. Default: found, and named.")] = None,
    batch_size: Rows = 32,
    device: Where = "cpu",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write OUT anew where it is there.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an interrupted run stopped.")] = False,
    as_json: AsJson = False,
) -> None:
    """Answer every row of a file: the same rows in the same order, with ``answer`` and ``confidence``."""
    streams, prints = str(file) == "-", str(out) == "-"
    if prints and as_json:
        raise InputError("predict: found --out - and --json, which both write to standard output; expected one of them")
    if prints and (resume or overwrite):
        raise InputError("predict: found --out - with --resume or --overwrite, expected a file for these")
    if batch_size < 1:
        raise InputError("--batch-size", str(batch_size), "at least 1")
    if not streams and not file.is_file():
        raise InputError(str(file), "no such file", "JSON lines, or a CSV with a header")
    if not streams and not prints and file.resolve() == out.resolve():
        raise InputError("--out", "the input itself", "another file")
    read_record(folder)
    from jieyue.run.predict import Predictor, check_out, predict_file

    if not prints:
        check_out(out, resume=resume, overwrite=overwrite)
    console = Console(as_json)
    done = predict_file(
        Predictor(folder, device=device),
        sys.stdin.buffer if streams else file,
        sys.stdout if prints else out,
        batch_size=batch_size,
        resume=resume,
        overwrite=overwrite,
        encoding=encoding,
        listener=SILENT if prints else console,  # rows alone go to standard output
    )
    rate = round(done.rows / max(done.seconds, 1e-9), 1)
    if prints:
        sys.stderr.write(f"{done.rows:,} rows, {rate:,} per second\n")
    else:
        console.fact(
            "predicted",
            rows=done.rows,
            kept=done.kept,
            seconds=round(done.seconds, 2),
            rows_per_second=rate,
            out=str(out),
        )


def classify(
    folder: Folder,
    text: Texts = None,
    device: Where = "cpu",
    as_json: AsJson = False,
) -> None:
    """Label some texts: given ones, or the lines of standard input."""
    _answer("classify", folder, text, device, as_json)


def tag(
    folder: Folder,
    text: Texts = None,
    device: Where = "cpu",
    as_json: AsJson = False,
) -> None:
    """Find the entities of some texts: given ones, or the lines of standard input."""
    _answer("tag", folder, text, device, as_json)


def _answer(task: str, folder: Path, text: list[str] | None, device: str, as_json: bool) -> None:
    read_record(folder, task)
    texts = list(text or ())
    if not texts:
        if sys.stdin.isatty():
            raise InputError(f"{task}: found no text, expected --text or texts on standard input, one a line")
        texts = [line for line in decoded(sys.stdin.buffer.read(), "standard input").splitlines() if line.strip()]
    if not texts or not all(one.strip() for one in texts):
        raise InputError(f"{task}: found an empty text, expected one with words")
    from jieyue.run.predict import Predictor, joined
    from jieyue.run.row_files import cell

    answering = Predictor(folder, device=device)
    rows = [{"text": one} for one in texts]
    found = [joined(row, one) for row, one in zip(rows, answering(rows), strict=True)]
    if as_json:
        for row in found:
            sys.stdout.write(json.dumps(row, ensure_ascii=False) + "\n")
        return
    Console().table("", ["text", "answer", "confidence"], [[*map(cell, row.values())] for row in found])
