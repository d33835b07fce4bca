"""Titles on the command line: ``train title``, ``plan title``, ``doctor title``, and ``title DIR`` that writes them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from jieyue.budget import Budget, parse_seconds
from jieyue.errors import InputError

from .console import Door, decoded, read_text, show
from .options import (
    AsJson,
    BudgetText,
    Checkpointing,
    Device,
    EffectiveBatch,
    Epochs,
    LearningRate,
    Limit,
    NewHead,
    Out,
    Resume,
    SaveSteps,
    Seed,
    SkipBad,
    Start,
    Steps,
    Time,
    Vocabulary,
)

__all__ = [
    "Kind", "OverLong", "Remedies", "SourceColumn", "SourceTokens", "TitleColumn", "TitleData", "TitleHeldOut", "TitleModel",
    "TitleTokens", "add_to", "title_settings",
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


def title_settings(model: str, **given: Any) -> Any:
    """``TitleSettings`` with what was given; None where nothing was, so that the recipe decides."""
    from dataclasses import replace

    from jieyue import run

    chosen = {name: value for name, value in given.items() if value is not None}
    return replace(run.task("title").settings(run.Materials(model=model), 0), **chosen) if chosen else None


def train_title(
    model: TitleModel = "tiny",
    out: Out = Path("runs/title"),
    data: TitleData = None,
    held_out: TitleHeldOut = None,
    budget: BudgetText = "4GiB",
    effective_batch: EffectiveBatch = 16,
    steps: Steps = None,
    epochs: Epochs = None,
    time: Time = None,
    learning_rate: LearningRate = None,
    seed: Seed = 0,
    start: Start = None,
    vocabulary: Vocabulary = None,
    kind: Kind = None,
    source_tokens: SourceTokens = None,
    title_tokens: TitleTokens = None,
    over_long: OverLong = None,
    beams: Beams = None,
    source_column: SourceColumn = None,
    title_column: TitleColumn = None,
    remedy: Remedies = None,
    limit: Limit = None,
    checkpointing: Checkpointing = None,
    save_steps: SaveSteps = 200,
    skip_bad: SkipBad = False,
    new_head: NewHead = False,
    device: Device = "cpu",
    resume: Resume = False,
    as_json: AsJson = False,
) -> None:
    """Train a writer of titles: plan, train, evaluate, report."""
    from jieyue import run
    from jieyue.training.remedies.texts import parse_remedy

    from .train import run_recipe

    course = run.Course(
        effective_batch=effective_batch,
        steps=steps,
        epochs=epochs,
        seconds=None if time is None else parse_seconds(time, "time"),
        learning_rate=learning_rate,
        seed=seed,
        start=start,
        checkpointing=checkpointing,
        save_steps=save_steps,
        remedies=tuple(parse_remedy(text) for text in remedy or ()),
    )
    materials = run.Materials(
        model=model,
        data=data or (),
        held_out=held_out or (),
        settings=title_settings(
            model, kind=kind, source_tokens=source_tokens, title_tokens=title_tokens, over_long=over_long, beams=beams,
            source_column=source_column, title_column=title_column,
        ),
        vocabulary=vocabulary,
        limit=limit,
        skip_bad=skip_bad,
        new_head=new_head,
    )  # fmt: skip
    then = "jieyue title {} --file text.txt"
    where: dict[str, Any] = {"budget": budget, "device": device, "resume": resume, "as_json": as_json, "then": then}
    run_recipe("title", materials, course, out, **where)


def plan_title(
    model: TitleModel = "tiny",
    data: TitleData = None,
    held_out: TitleHeldOut = None,
    budget: BudgetText = "4GiB",
    effective_batch: EffectiveBatch = 16,
    seed: Seed = 0,
    vocabulary: Vocabulary = None,
    kind: Kind = None,
    source_tokens: SourceTokens = None,
    title_tokens: TitleTokens = None,
    source_column: SourceColumn = None,
    title_column: TitleColumn = None,
    remedy: Remedies = None,
    limit: Limit = None,
    checkpointing: Checkpointing = None,
    skip_bad: SkipBad = False,
    new_head: NewHead = False,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Predict the peak of a training step, remedies included, and choose the micro-batch."""
    from jieyue import run
    from jieyue.training.remedies.texts import parse_remedy

    materials = run.Materials(
        model=model,
        data=data or (),
        held_out=held_out or (),
        settings=title_settings(
            model, kind=kind, source_tokens=source_tokens, title_tokens=title_tokens, source_column=source_column,
            title_column=title_column,
        ),
        vocabulary=vocabulary,
        limit=limit,
        skip_bad=skip_bad,
        new_head=new_head,
    )  # fmt: skip
    course = run.Course(
        effective_batch=effective_batch,
        seed=seed,
        checkpointing=checkpointing,
        remedies=tuple(parse_remedy(text) for text in remedy or ()),
    )
    show(Door(as_json), run.plan("title", materials, budget=Budget.parse(budget, device), course=course))


def doctor_title(
    files: Annotated[list[Path] | None, typer.Argument(help="Training files. Default: the corpus that ships.")] = None,
    held_out: TitleHeldOut = None,
    model: TitleModel = "tiny",
    source_tokens: SourceTokens = None,
    title_tokens: TitleTokens = None,
    source_column: SourceColumn = None,
    title_column: TitleColumn = None,
    limit: Limit = None,
    skip_bad: SkipBad = False,
    as_json: AsJson = False,
) -> None:
    """Count everything that is wrong with the data, or will be cut, before training."""
    from jieyue import run

    settings = title_settings(
        model,
        source_tokens=source_tokens,
        title_tokens=title_tokens,
        source_column=source_column,
        title_column=title_column,
    )
    materials = run.Materials(
        model=model, data=files or (), held_out=held_out or (), settings=settings, limit=limit, skip_bad=skip_bad
    )
    show(Door(as_json), run.doctor("title", materials))


def title(
    folder: Annotated[Path, typer.Argument(help="Folder of a trained writer of titles.")],
    text: Annotated[list[str] | None, typer.Option(help="A text; several give several titles.")] = None,
    file: Annotated[list[Path] | None, typer.Option(help="A file with a text. Default: standard input.")] = None,
    beams: Beams = None,
    as_json: AsJson = False,
) -> None:
    """Write a title for each text, file, or standard input."""
    from jieyue.run import title as titles

    texts = [*(text or ()), *(read_text(path) for path in file or ())]
    if not texts:
        if sys.stdin.isatty():
            raise InputError("title: found no text, expected --text, --file or a text on standard input")
        texts = [decoded(sys.stdin.buffer.read(), "standard input")]
    door = Door()
    for found in titles.write(folder, texts, **({} if beams is None else {"beams": beams})):
        if as_json:
            sys.stdout.write(json.dumps(found, ensure_ascii=False) + "\n")
        else:
            door.say(found["title"])
