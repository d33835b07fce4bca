"""``jieyue compare TASK``: variants of one training side by side, several seeds, intervals."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jieyue.budget import Budget
from jieyue.errors import InputError
from jieyue.run.config import TrainingConfig
from jieyue.tasks.config import RunConfig

from .console import Console, show
from .flags import Given, chosen, flag_of, flags_of, verb_of
from .options import AsJson, BudgetText, ConfigFile, Device, Show, writable
from .tasks import TITLE, remedies_of, run_config

if TYPE_CHECKING:
    from jieyue.run.comparison import Variant

__all__ = ["TITLE_VARIANTS", "add_to"]

TITLE_VARIANTS = (
    "baseline",
    "replacement, target=replace_tokens(0.3)",
    "replacement, sequence=replace_tokens(0.3, pool='sequence')",
    "gradient penalty=penalize_gradient(0.06)",
    "FGM=fgm(0.5)",
    "scheduled sampling=sample_scheduled(0.25)",
)

OUT = "runs/compare-title"
Variants = Annotated[
    list[str] | None,
    typer.Option(
        help="NAME or 'NAME=remedy; remedy'; the first is the baseline. Default: the article's and FGM, sampling."
    ),
]


def add_to(app: typer.Typer) -> None:
    """Registers every verb."""
    text = (
        "Train a writer of titles in several variants, each with several seeds; the same command goes on after a stop."
    )
    group = typer.Typer(help="Train variants with several seeds and lay them side by side.", no_args_is_help=True)
    group.command("title")(verb_of(_compare_title, _flags(), text))
    app.add_typer(group, name="compare")


def _flags() -> list[inspect.Parameter]:
    """Those of ``train title``, but for what the variants change."""
    defaults: dict[str, int | str] = {"effective_batch": 16, "start": "orthogonal-copy"}
    return [
        *flags_of(RunConfig, leave=TITLE.without, words=TITLE.words),
        flag_of(
            "out",
            Annotated[Path, typer.Option(callback=writable, help="Folder for the cells and the report.")],
            Path(OUT),
        ),
        flag_of("variant", Variants, None),
        flag_of("seeds", Annotated[int, typer.Option(help="How many seeds, from 0.")], 3),
        *flags_of(TrainingConfig, leave=("curriculum", "seed"), defaults=defaults),
        *flags_of(TITLE.settings_class, is_open=True),
        flag_of("budget", BudgetText, "4GiB"),
        flag_of("device", Device, "cpu"),
        flag_of("config", ConfigFile, None),
        flag_of("show", Show, False),
        flag_of("as_json", AsJson, False),
    ]


def _compare_title(given: Given) -> None:
    budget, variants = Budget.parse(given["budget"], given["device"]), _variants(given["variant"] or TITLE_VARIANTS)
    config, console = run_config(TITLE, given, 0), Console(given["as_json"])
    training = TrainingConfig(**chosen(TrainingConfig, given))
    if given["show"]:
        console.settings("compare title", _flags(), given)
        return
    from jieyue.run.comparison import compare

    seeds, out = range(given["seeds"]), given["out"]
    report = compare("title", variants, config, out, seeds=seeds, training=training, budget=budget, listener=console)
    show(console, report, ("Comparison", "Exposure gap"))
    console.fact("saved", report=str(out / "report.html"))


def _variants(texts: list[str] | tuple[str, ...]) -> dict[str, Variant]:
    """``NAME=remedy; remedy`` as variants, in order."""
    from jieyue.run.comparison import Variant

    found: dict[str, Variant] = {}
    for text in texts:
        name, _, remedies = text.partition("=")
        if not name.strip() or name.strip() in found:
            raise InputError(f"--variant {text!r}: found no name or one that stands before, expected NAME=remedy")
        found[name.strip()] = Variant(remedies=remedies_of([one for one in remedies.split(";") if one.strip()]))
    return found
