"""``jieyue plan RECIPE`` and ``jieyue doctor RECIPE``: what would be done and what the data hold, before any training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jieyue.budget import Budget

from .chat import doctor_chat, plan_chat
from .console import Door, show
from .options import (
    AsJson,
    Attention,
    BudgetText,
    Checkpointing,
    Data,
    Device,
    EffectiveBatch,
    HeldOut,
    LabelColumn,
    Labelled,
    Limit,
    MaxTokens,
    Model,
    NewHead,
    PairColumn,
    PlainText,
    Questions,
    ReaderKind,
    Seed,
    Share,
    SkipBad,
    Slots,
    TextColumn,
    Unshare,
    UnshareAfter,
    Vocabulary,
    WholeWords,
    WindowTokens,
)
from .settings import blocks, read_settings
from .title import doctor_title, plan_title

__all__ = ["add_to"]

_plan = typer.Typer(help="Say what training would cost and choose the settings; train nothing.", no_args_is_help=True)
_doctor = typer.Typer(help="Check data before training.", no_args_is_help=True)


def add_to(app: typer.Typer) -> None:
    """Registers every verb."""
    _plan.command("title")(plan_title)
    _plan.command("chat")(plan_chat)
    _doctor.command("title")(doctor_title)
    _doctor.command("chat")(doctor_chat)
    app.add_typer(_plan, name="plan")
    app.add_typer(_doctor, name="doctor")


@_plan.command("read")
def plan_read(
    model: Model = "tiny",
    data: Data = None,
    held_out: HeldOut = None,
    budget: BudgetText = "4GiB",
    effective_batch: EffectiveBatch = 32,
    seed: Seed = 0,
    vocabulary: Vocabulary = None,
    reader: ReaderKind = None,
    answer_slots: Slots = None,
    window_tokens: WindowTokens = None,
    questions: Questions = None,
    checkpointing: Checkpointing = None,
    skip_bad: SkipBad = False,
    new_head: NewHead = False,
    attention: Attention = None,
    unshare: Unshare = None,
    unshare_after: UnshareAfter = 0,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Predict the peak of a training step before any weight is allocated, and choose the micro-batch."""
    from jieyue import run

    materials = run.Materials(
        model=model,
        data=data or (),
        held_out=held_out or (),
        settings=read_settings(model, bool(data), answer_slots, window_tokens, seed, reader=reader),
        vocabulary=vocabulary,
        limit=questions,
        skip_bad=skip_bad,
        new_head=new_head,
        attention=attention,
        unshare=blocks(unshare),
        unshare_after=unshare_after,
    )
    course = run.Course(effective_batch=effective_batch, seed=seed, checkpointing=checkpointing)
    show(Door(as_json), run.plan("read", materials, budget=Budget.parse(budget, device), course=course))


@_plan.command("classify")
def plan_classify(
    model: Model = "tiny",
    data: Labelled = None,
    held_out: HeldOut = None,
    budget: BudgetText = "4GiB",
    effective_batch: EffectiveBatch = 32,
    seed: Seed = 0,
    vocabulary: Vocabulary = None,
    max_tokens: MaxTokens = 128,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    pair_column: PairColumn = None,
    limit: Limit = None,
    checkpointing: Checkpointing = None,
    skip_bad: SkipBad = False,
    new_head: NewHead = False,
    attention: Attention = None,
    unshare: Unshare = None,
    unshare_after: UnshareAfter = 0,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Predict the peak of a training step before any weight is allocated, and choose the micro-batch."""
    from jieyue import run
    from jieyue.recipes.classify import ClassifySettings

    materials = run.Materials(
        model=model,
        data=data or (),
        held_out=held_out or (),
        settings=ClassifySettings(
            max_tokens=max_tokens, text_column=text_column, label_column=label_column, pair_column=pair_column
        ),
        vocabulary=vocabulary,
        limit=limit,
        skip_bad=skip_bad,
        new_head=new_head,
        attention=attention,
        unshare=blocks(unshare),
        unshare_after=unshare_after,
    )
    course = run.Course(effective_batch=effective_batch, seed=seed, checkpointing=checkpointing)
    show(Door(as_json), run.plan("classify", materials, budget=Budget.parse(budget, device), course=course))


@_plan.command("mlm")
def plan_mlm(
    model: Model = "tiny",
    data: PlainText = None,
    held_out: HeldOut = None,
    budget: BudgetText = "4GiB",
    effective_batch: EffectiveBatch = 32,
    seed: Seed = 0,
    vocabulary: Vocabulary = None,
    max_tokens: MaxTokens = 128,
    share: Share = 0.15,
    whole_words: WholeWords = False,
    limit: Limit = None,
    checkpointing: Checkpointing = None,
    skip_bad: SkipBad = False,
    new_head: NewHead = False,
    attention: Attention = None,
    unshare: Unshare = None,
    unshare_after: UnshareAfter = 0,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Predict the peak of a training step before any weight is allocated, and choose the micro-batch."""
    from jieyue import run
    from jieyue.recipes.mlm import MaskSettings

    materials = run.Materials(
        model=model,
        data=data or (),
        held_out=held_out or (),
        settings=MaskSettings(max_tokens=max_tokens, share=share, whole_words=whole_words, seed=seed),
        vocabulary=vocabulary,
        limit=limit,
        skip_bad=skip_bad,
        new_head=new_head,
        attention=attention,
        unshare=blocks(unshare),
        unshare_after=unshare_after,
    )
    course = run.Course(effective_batch=effective_batch, seed=seed, checkpointing=checkpointing)
    show(Door(as_json), run.plan("mlm", materials, budget=Budget.parse(budget, device), course=course))


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
    measure: Annotated[int, typer.Option(help="Run so many rows from the top, each in its own process.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for the report (HTML and JSON).")] = None,
    as_json: AsJson = False,
) -> None:
    """The settings in which any model could be trained within a budget, cheapest exact first; no weight is read."""
    from jieyue.run.any_model import plan_model as plan

    found = plan(
        model,
        budget=budget,
        effective_batch=effective_batch,
        length=length,
        data=data,
        head=head,
        attention=attention,
        measure=measure,
    )
    show(Door(as_json), found.report(), out=out, name="plan")


@_doctor.command("read")
def doctor_read(
    files: Annotated[list[Path] | None, typer.Argument(help="Training files. Default: the corpus that ships.")] = None,
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
    from jieyue import run

    materials = run.Materials(
        model=model,
        data=files or (),
        held_out=held_out or (),
        settings=read_settings(model, bool(files), answer_slots, window_tokens, 0, reader=reader),
        limit=questions,
        skip_bad=skip_bad,
    )
    show(Door(as_json), run.doctor("read", materials))


@_doctor.command("classify")
def doctor_classify(
    files: Annotated[list[Path] | None, typer.Argument(help="Training files. Default: the corpus that ships.")] = None,
    held_out: HeldOut = None,
    model: Model = "tiny",
    max_tokens: MaxTokens = 128,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    pair_column: PairColumn = None,
    limit: Limit = None,
    skip_bad: SkipBad = False,
    as_json: AsJson = False,
) -> None:
    """Count everything that is wrong with the data, or will be cut, before training."""
    from jieyue import run
    from jieyue.recipes.classify import ClassifySettings

    materials = run.Materials(
        model=model,
        data=files or (),
        held_out=held_out or (),
        settings=ClassifySettings(
            max_tokens=max_tokens, text_column=text_column, label_column=label_column, pair_column=pair_column
        ),
        limit=limit,
        skip_bad=skip_bad,
    )
    show(Door(as_json), run.doctor("classify", materials))


@_doctor.command("mlm")
def doctor_mlm(
    files: Annotated[list[Path] | None, typer.Argument(help="Training files. Default: the corpus that ships.")] = None,
    held_out: HeldOut = None,
    model: Model = "tiny",
    max_tokens: MaxTokens = 128,
    limit: Limit = None,
    skip_bad: SkipBad = False,
    as_json: AsJson = False,
) -> None:
    """Count everything that is wrong with the data, or will be cut, before training."""
    from jieyue import run
    from jieyue.recipes.mlm import MaskSettings

    materials = run.Materials(
        model=model,
        data=files or (),
        held_out=held_out or (),
        settings=MaskSettings(max_tokens=max_tokens),
        limit=limit,
        skip_bad=skip_bad,
    )
    show(Door(as_json), run.doctor("mlm", materials))
