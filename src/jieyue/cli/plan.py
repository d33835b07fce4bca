"""``jieyue plan``: what training would take, before any; ``plan model`` for any model, the tasks' own in ``tasks.py``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from .console import Console, show
from .options import AsJson, BudgetText, EffectiveBatch, writable

__all__ = ["add_to"]


def add_to(app: typer.Typer) -> typer.Typer:
    """Registers the group, to which the tasks add theirs."""
    help = "Say what training would cost and choose the settings; train nothing."
    group = typer.Typer(help=help, no_args_is_help=True)
    group.command("model")(plan_model)
    app.add_typer(group, name="plan")
    return group


def plan_model(
    model: Annotated[str, typer.Argument(help="A preset, a folder (its config.json is enough) or a hub name.")],
    length: Annotated[int | None, typer.Option(help="Tokens of a row. Default: the longest of --data, or 128.")] = None,
    data: Annotated[Path | None, typer.Option("--data", help="A text a line: their lengths are told and used.")] = None,
    head: Annotated[
        str | None,
        typer.Option(
            help="masked-lm, causal-lm, sequence-to-sequence, classification, image-classification, span. Default: its own."
        ),
    ] = None,
    budget: BudgetText = "4GiB",
    effective_batch: EffectiveBatch = 32,
    attention: Annotated[str | None, typer.Option(help="A pattern to try besides, such as local(64).")] = None,
    optimizer: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Only settings of this one, as in train. Default: all that are there."),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", metavar="NAME", help="Only float32 or bfloat16 (autocast). Default: both.")
    ] = None,
    measure: Annotated[int, typer.Option(help="Run so many rows from the top, each in its own process.")] = 0,
    out: Annotated[Path | None, typer.Option(callback=writable, help="Folder for the report (HTML and JSON).")] = None,
    as_json: AsJson = False,
) -> None:
    """The settings in which any model could be trained within a budget, cheapest exact first; no weight is read."""
    from jieyue.planning.table import kinds
    from jieyue.run.any_model import check_asked, open_subject, plan_subject

    check_asked(budget, effective_batch, measure)
    console = Console(as_json)
    found = plan_subject(
        model,
        open_subject(model, length=length, data=data, head=head),
        budget=budget,
        effective_batch=effective_batch,
        settings=partial(kinds, attention=attention, optimizer=optimizer, dtype=dtype),
        measure=measure,
        listener=console,
    )
    show(console, found.report(), out=out, name="plan")
