"""``jieyue plan RECIPE`` and ``jieyue doctor RECIPE``: what would be done and what the data hold, before any training."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from .bundles import Backbone, Columns, Hidden, Planning, spread
from .chat import doctor_chat, plan_chat
from .console import Door, show
from .jobs import examine, plan_recipe
from .optional import VerbGroup
from .options import (
    AsJson,
    BudgetText,
    Data,
    EffectiveBatch,
    HeldOut,
    Labelled,
    Limit,
    MaxTokens,
    Model,
    PlainText,
    Questions,
    ReaderKind,
    SkipBad,
    Slots,
    TrainingFiles,
    WindowTokens,
)
from .settings import read_settings
from .title import doctor_title, plan_title

__all__ = ["add_to"]

_plan = typer.Typer(
    cls=VerbGroup, help="Say what training would cost and choose the settings; train nothing.", no_args_is_help=True
)
_doctor = typer.Typer(help="Check data before training.", no_args_is_help=True)


def add_to(app: typer.Typer) -> None:
    """Registers every verb."""
    _plan.command("title")(spread(plan_title))
    _plan.command("chat")(spread(plan_chat))
    _doctor.command("title")(spread(doctor_title))
    _doctor.command("chat")(spread(doctor_chat))
    app.add_typer(_plan, name="plan")
    app.add_typer(_doctor, name="doctor")


@_plan.command("read")
@spread
def plan_read(
    model: Model = "tiny",
    data: Data = None,
    held_out: HeldOut = None,
    reader: ReaderKind = None,
    answer_slots: Slots = None,
    window_tokens: WindowTokens = None,
    questions: Questions = None,
    backbone: Backbone = Backbone(),
    planning: Planning = Planning(),
) -> None:
    """Predict the peak of a training step before any weight is allocated, and choose the micro-batch."""
    settings = read_settings(model, bool(data), answer_slots, window_tokens, planning.seed, reader=reader)
    materials = backbone.materials(model=model, data=data, held_out=held_out, settings=settings, limit=questions)
    plan_recipe("read", materials, planning.course(), planning)


@_plan.command("classify")
@spread
def plan_classify(
    model: Model = "tiny",
    data: Labelled = None,
    held_out: HeldOut = None,
    columns: Columns = Columns(),
    limit: Limit = None,
    backbone: Backbone = Backbone(),
    planning: Planning = Planning(),
) -> None:
    """Predict the peak of a training step before any weight is allocated, and choose the micro-batch."""
    settings = columns.settings()
    materials = backbone.materials(model=model, data=data, held_out=held_out, settings=settings, limit=limit)
    plan_recipe("classify", materials, planning.course(), planning)


@_plan.command("mlm")
@spread
def plan_mlm(
    model: Model = "tiny",
    data: PlainText = None,
    held_out: HeldOut = None,
    hidden: Hidden = Hidden(),
    limit: Limit = None,
    backbone: Backbone = Backbone(),
    planning: Planning = Planning(),
) -> None:
    """Predict the peak of a training step before any weight is allocated, and choose the micro-batch."""
    settings = hidden.settings(seed=planning.seed)
    materials = backbone.materials(model=model, data=data, held_out=held_out, settings=settings, limit=limit)
    plan_recipe("mlm", materials, planning.course(), planning)


@_plan.command("model")
def plan_model(
    model: Annotated[str, typer.Argument(help="A preset, a folder (its config.json is enough) or a hub name.")],
    length: Annotated[int | None, typer.Option(help="Tokens of a row. Default: the longest of --data, or 128.")] = None,
    data: Annotated[Path | None, typer.Option("--data", help="A text a line: their lengths are told and used.")] = None,
    head: Annotated[
        str | None, typer.Option(help="masked-lm, causal-lm or classification. Default: the checkpoint's own.")
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
    out: Annotated[Path | None, typer.Option(help="Folder for the report (HTML and JSON).")] = None,
    as_json: AsJson = False,
) -> None:
    """The settings in which any model could be trained within a budget, cheapest exact first; no weight is read."""
    from jieyue.planning.table import kinds
    from jieyue.run.any_model import plan_model as plan

    found = plan(
        model,
        budget=budget,
        effective_batch=effective_batch,
        length=length,
        data=data,
        head=head,
        settings=partial(kinds, attention=attention, optimizer=optimizer, dtype=dtype),
        measure=measure,
    )
    show(Door(as_json), found.report(), out=out, name="plan")


@_doctor.command("read")
def doctor_read(
    files: TrainingFiles = None,
    held_out: HeldOut = None,
    model: Model = "tiny",
    reader: ReaderKind = None,
    answer_slots: Slots = None,
    window_tokens: WindowTokens = None,
    questions: Questions = None,
    skip_bad: SkipBad = False,
    as_json: AsJson = False,
) -> None:
    """Count everything that is wrong with the data, or will be cut, before training."""
    settings = read_settings(model, bool(files), answer_slots, window_tokens, 0, reader=reader)
    examine(
        "read",
        as_json,
        model=model,
        data=files,
        held_out=held_out,
        settings=settings,
        limit=questions,
        skip_bad=skip_bad,
    )


@_doctor.command("classify")
@spread
def doctor_classify(
    files: TrainingFiles = None,
    held_out: HeldOut = None,
    model: Model = "tiny",
    columns: Columns = Columns(),
    limit: Limit = None,
    skip_bad: SkipBad = False,
    as_json: AsJson = False,
) -> None:
    """Count everything that is wrong with the data, or will be cut, before training."""
    settings = columns.settings()
    examine(
        "classify",
        as_json,
        model=model,
        data=files,
        held_out=held_out,
        settings=settings,
        limit=limit,
        skip_bad=skip_bad,
    )


@_doctor.command("mlm")
def doctor_mlm(
    files: TrainingFiles = None,
    held_out: HeldOut = None,
    model: Model = "tiny",
    max_tokens: MaxTokens = 128,
    limit: Limit = None,
    skip_bad: SkipBad = False,
    as_json: AsJson = False,
) -> None:
    """Count everything that is wrong with the data, or will be cut, before training."""
    settings = Hidden(max_tokens=max_tokens).settings()
    examine(
        "mlm", as_json, model=model, data=files, held_out=held_out, settings=settings, limit=limit, skip_bad=skip_bad
    )
