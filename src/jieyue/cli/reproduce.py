"""``jieyue reproduce [ARTICLE]``: the articles' claims, measured with several seeds, judged, and written as a page."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated

import typer

from jieyue.budget import format_seconds
from jieyue.errors import InputError

from .console import Console
from .language import spoken
from .options import AsJson, writable

__all__ = ["add_to"]


def add_to(app: typer.Typer) -> None:
    """Registers the verb."""
    app.command("reproduce")(reproduce)


def reproduce(
    article: Annotated[
        list[str] | None,
        typer.Argument(help="1 … 8, an article's idea (such as gelu) or a claim's key; several. Default: all."),
    ] = None,
    scale: Annotated[
        str, typer.Option(help="minutes (data that ship), hour (larger data) or full (hub, GPU).")
    ] = "minutes",
    seeds: Annotated[int, typer.Option(help="How many seeds, from 0; at least 2.")] = 3,
    weights: Annotated[
        list[Path] | None,
        typer.Option(
            "--weights",
            help="Folder of a pretrained model: measure the claims that it can serve on it instead; several.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(callback=writable, help="Folder for the measured cells and the pages.")] = Path(
        "reproduction"
    ),
    data: Annotated[
        Path | None, typer.Option("--data", help="Folder of the larger data. Default: the variable JIEYUE_DATA.")
    ] = None,
    docs: Annotated[
        Path | None,
        typer.Option(
            callback=writable, help="Also keep the cells in DOCS/results, and write DOCS/reproduction.md from them."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure the articles' claims; the same command goes on after a stop, and a second process shares the work."""
    from jieyue.evidence.articles import choose
    from jieyue.evidence.claims import SCALES
    from jieyue.evidence.pages import publish, write
    from jieyue.evidence.pretrained.table import choose_on, left_out
    from jieyue.evidence.pretrained.weights import open_weights
    from jieyue.evidence.running import measure

    console = Console(as_json)
    known = [one for one in SCALES if one == scale]
    if not known:
        raise InputError(f"--scale {scale}: expected one of {', '.join(SCALES)}")
    if seeds < 2:
        raise InputError(f"--seeds {seeds}: expected at least 2; one run shows nothing")
    given = os.environ.get("JIEYUE_DATA")
    folder = data if data is not None or not given else Path(given)
    asked = list(article or ())
    models = open_weights(weights or ())
    claims = choose_on(models, asked) if models else choose(asked)
    for line in left_out(models, asked):
        console.say(line)
    named = [word for model in models for word in ("--weights", model.name)]
    command = shlex.join(["jieyue", "reproduce", *asked, *named, "--scale", scale, "--seeds", str(seeds)])
    outcomes = measure(claims, known[0], range(seeds), out, data=folder, command=command, say=console.say)
    rows = []
    for outcome in outcomes:
        verdict = outcome.verdict
        seconds = format_seconds(sum(result.seconds for result in outcome.results))
        rows.append([str(outcome.claim.article), outcome.claim.key, verdict.word, verdict.why, seconds])
    console.table("Verdicts", ["article", "claim", "verdict", "why", "seconds"], rows, event="verdict")
    written = write(outcomes, out, spoken())
    if docs is not None:
        written += publish(outcomes, docs)
    for path in written:
        console.fact("wrote", path=str(path))
