"""Titles on the command line: ``train title``, ``plan title``, ``doctor title``, and ``title DIR`` that writes them."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from jieyue.errors import InputError

from .bundles import Backbone, Planning, Running, Training
from .console import Door, decoded, read_text
from .jobs import examine, plan_recipe, train_recipe
from .options import AsJson, Limit, NewHead, Out, SkipBad, Start, TrainingFiles, Vocabulary

__all__ = [
    "Beams", "Remedies", "TitleBackbone", "TitleData", "TitleHeldOut", "TitleModel", "Titles", "add_to", "doctor_title",
    "plan_title", "train_title",
]  # fmt: skip

TitleModel = Annotated[
    str,
    typer.Option(
        "--model", help="A preset (tiny, small, base), a folder or a hub name: masked LM, causal LM or BART/T5."
    ),
]
TitleData = Annotated[
    list[Path] | None,
    typer.Option("--data", help="TSV, CSV or JSON lines with sources and titles. Default: the corpus that ships."),
]
TitleHeldOut = Annotated[
    list[Path] | None, typer.Option("--held-out", help="Files to judge by. Default: what ships, or a tenth of --data.")
]
Kind = Annotated[
    str | None,
    typer.Option(help="prefix, causal or encoder-decoder. Default: what the model is (a masked LM: prefix)."),
]
SourceTokens = Annotated[int | None, typer.Option(help="Longest source in tokens, its [SEP] included (default 224).")]
TitleTokens = Annotated[int | None, typer.Option(help="Longest title in tokens, its [SEP] included (default 32).")]
OverLong = Annotated[str | None, typer.Option(help="A title that is longer: cut (default), skip or refuse.")]
Beams = Annotated[int | None, typer.Option(help="Hypotheses of the search (default 3); 1 = greedy.")]
SourceColumn = Annotated[str | None, typer.Option(help="The source's column: a name, or a number from 1.")]
TitleColumn = Annotated[str | None, typer.Option(help="The title's column: a name, or a number from 1.")]
Remedies = Annotated[
    list[str] | None,
    typer.Option("--remedy", help="Such as 'replace_tokens(0.3)', 'fgm(0.5)'; several nest, the first innermost."),
]


def add_to(app: typer.Typer) -> None:
    """Registers every verb."""
    app.command("title")(title)


@dataclass(frozen=True, kw_only=True)
class Titles:
    """What sources and titles are, and by what kind of model they are written."""

    kind: Kind = None
    source_tokens: SourceTokens = None
    title_tokens: TitleTokens = None
    over_long: OverLong = None
    source_column: SourceColumn = None
    title_column: TitleColumn = None

    def settings(self, model: str, **more: Any) -> Any:
        """``TitleSettings`` with what was given; None where nothing was, so that the recipe decides."""
        from jieyue import run

        chosen = {name: value for name, value in (vars(self) | more).items() if value is not None}
        return replace(run.task("title").settings(run.Materials(model=model), 0), **chosen) if chosen else None


@dataclass(frozen=True, kw_only=True)
class TitleBackbone:
    """The flags of ``Backbone`` that a writer of titles has."""

    vocabulary: Vocabulary = None
    skip_bad: SkipBad = False
    new_head: NewHead = False

    def materials(self, **more: Any) -> Any:
        """As ``Backbone.materials``."""
        return Backbone(**vars(self)).materials(**more)


def train_title(
    model: TitleModel = "tiny",
    out: Out = Path("runs/title"),
    data: TitleData = None,
    held_out: TitleHeldOut = None,
    training: Training = Training(effective_batch=16),
    start: Start = None,
    titles: Titles = Titles(),
    beams: Beams = None,
    remedy: Remedies = None,
    limit: Limit = None,
    backbone: TitleBackbone = TitleBackbone(),
    running: Running = Running(),
) -> None:
    """Train a writer of titles: plan, train, evaluate, report."""
    settings = titles.settings(model, beams=beams)
    materials = backbone.materials(model=model, data=data, held_out=held_out, settings=settings, limit=limit)
    course = training.course(start=start, remedies=_parsed(remedy))
    train_recipe("title", materials, course, out, running, then="jieyue title {} --file text.txt")


def plan_title(
    model: TitleModel = "tiny",
    data: TitleData = None,
    held_out: TitleHeldOut = None,
    titles: Titles = Titles(),
    remedy: Remedies = None,
    limit: Limit = None,
    backbone: TitleBackbone = TitleBackbone(),
    planning: Planning = Planning(effective_batch=16),
) -> None:
    """Predict the peak of a training step, remedies included, and choose the micro-batch."""
    settings = titles.settings(model)
    materials = backbone.materials(model=model, data=data, held_out=held_out, settings=settings, limit=limit)
    plan_recipe("title", materials, planning.course(remedies=_parsed(remedy)), planning)


def doctor_title(
    files: TrainingFiles = None,
    held_out: TitleHeldOut = None,
    model: TitleModel = "tiny",
    titles: Titles = Titles(),
    limit: Limit = None,
    skip_bad: SkipBad = False,
    as_json: AsJson = False,
) -> None:
    """Count everything that is wrong with the data, or will be cut, before training."""
    settings = titles.settings(model)
    examine(
        "title", as_json, model=model, data=files, held_out=held_out, settings=settings, limit=limit, skip_bad=skip_bad
    )


def _parsed(remedies: list[str] | None) -> tuple[Any, ...]:
    from jieyue.training.remedies.texts import parse_remedy

    return tuple(parse_remedy(text) for text in remedies or ())


def title(
    folder: Annotated[Path, typer.Argument(help="Folder of a trained writer of titles.")],
    text: Annotated[list[str] | None, typer.Option(help="A text; several give several titles.")] = None,
    file: Annotated[list[Path] | None, typer.Option(help="A file with a text. Default: standard input.")] = None,
    beams: Beams = None,
    as_json: AsJson = False,
) -> None:
    """Write a title for each text, file, or standard input."""
    from jieyue.run import title as writing

    texts = [*(text or ()), *(read_text(path) for path in file or ())]
    if not texts:
        if sys.stdin.isatty():
            raise InputError("title: found no text, expected --text, --file or a text on standard input")
        texts = [decoded(sys.stdin.buffer.read(), "standard input")]
    door = Door()
    for found in writing.write(folder, texts, **({} if beams is None else {"beams": beams})):
        if as_json:
            sys.stdout.write(json.dumps(found, ensure_ascii=False) + "\n")
        else:
            door.say(found["title"])
