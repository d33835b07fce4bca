"""``jieyue compare RECIPE``: variants of one training side by side, several seeds, intervals."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from jieyue.budget import Budget, parse_seconds
from jieyue.errors import InputError

from .console import Door, show
from .options import (
    AsJson,
    BudgetText,
    Device,
    EffectiveBatch,
    Epochs,
    LearningRate,
    Limit,
    NewHead,
    SaveSteps,
    SkipBad,
    Start,
    Steps,
    Time,
    Vocabulary,
)
from .title import (
    Beams,
    Kind,
    OverLong,
    SourceColumn,
    SourceTokens,
    TitleColumn,
    TitleData,
    TitleHeldOut,
    TitleModel,
    TitleTokens,
    title_settings,
)

__all__ = ["TITLE_VARIANTS", "add_to"]

TITLE_VARIANTS = (
    "baseline",
    "replacement, target=replace_tokens(0.3)",
    "replacement, sequence=replace_tokens(0.3, pool='sequence')",
    "gradient penalty=penalize_gradient(0.06)",
    "FGM=fgm(0.5)",
    "scheduled sampling=sample_scheduled(0.25)",
)

_compare = typer.Typer(help="Train variants with several seeds and lay them side by side.", no_args_is_help=True)


def add_to(app: typer.Typer) -> None:
    """Registers every verb."""
    app.add_typer(_compare, name="compare")


@_compare.command("title")
def compare_title(
    model: TitleModel = "tiny",
    out: Annotated[Path, typer.Option(help="Folder for the cells and the report.")] = Path("runs/compare-title"),
    data: TitleData = None,
    held_out: TitleHeldOut = None,
    variant: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME or 'NAME=remedy; remedy'; the first is the baseline. Default: the article's and FGM, sampling."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(help="How many seeds, from 0.")] = 3,
    budget: BudgetText = "4GiB",
    effective_batch: EffectiveBatch = 16,
    steps: Steps = None,
    epochs: Epochs = None,
    time: Time = None,
    learning_rate: LearningRate = None,
    start: Start = "orthogonal-copy",
    vocabulary: Vocabulary = None,
    kind: Kind = None,
    source_tokens: SourceTokens = None,
    title_tokens: TitleTokens = None,
    over_long: OverLong = None,
    beams: Beams = None,
    source_column: SourceColumn = None,
    title_column: TitleColumn = None,
    limit: Limit = None,
    save_steps: SaveSteps = 200,
    skip_bad: SkipBad = False,
    new_head: NewHead = False,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Train a writer of titles in several variants, each with several seeds; the same command goes on after a stop."""
    from jieyue import run

    course = run.Course(
        effective_batch=effective_batch,
        steps=steps,
        epochs=epochs,
        seconds=None if time is None else parse_seconds(time, "time"),
        learning_rate=learning_rate,
        start=start,
        save_steps=save_steps,
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
    door = Door(as_json)
    report = run.compare(
        "title",
        _variants(variant or TITLE_VARIANTS),
        materials,
        out,
        seeds=range(seeds),
        course=course,
        budget=Budget.parse(budget, device),
        watch=door,
    )
    show(door, report, ("Comparison", "Exposure gap"))
    door.fact("saved", report=str(out / "report.html"))


def _variants(texts: list[str] | tuple[str, ...]) -> dict[str, Any]:
    """``NAME=remedy; remedy`` as variants, in order."""
    from jieyue import run
    from jieyue.training.remedies.texts import parse_remedy

    found: dict[str, Any] = {}
    for text in texts:
        name, _, remedies = text.partition("=")
        if not name.strip() or name.strip() in found:
            raise InputError(f"--variant {text!r}: found no name or one that stands before, expected NAME=remedy")
        chosen = tuple(parse_remedy(one) for one in remedies.split(";") if one.strip())
        found[name.strip()] = run.Variant(remedies=chosen)
    return found
