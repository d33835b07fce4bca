"""``jieyue compare RECIPE``: variants of one training side by side, several seeds, intervals."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from jieyue.budget import Budget
from jieyue.errors import InputError

from .bundles import Lengths, spread
from .console import Door, show
from .options import AsJson, BudgetText, Device, Limit, Start
from .title import Beams, TitleBackbone, TitleData, TitleHeldOut, TitleModel, Titles

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
@spread
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
    lengths: Lengths = Lengths(effective_batch=16),
    start: Start = "orthogonal-copy",
    titles: Titles = Titles(),
    beams: Beams = None,
    limit: Limit = None,
    backbone: TitleBackbone = TitleBackbone(),
    budget: BudgetText = "4GiB",
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Train a writer of titles in several variants, each with several seeds; the same command goes on after a stop."""
    from jieyue import run

    settings = titles.settings(model, beams=beams)
    materials = backbone.materials(model=model, data=data, held_out=held_out, settings=settings, limit=limit)
    door = Door(as_json)
    report = run.compare(
        "title",
        _variants(variant or TITLE_VARIANTS),
        materials,
        out,
        seeds=range(seeds),
        course=lengths.course(start=start),
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
