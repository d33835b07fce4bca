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
    Model,
    NewHead,
    Questions,
    Seed,
    SkipBad,
    Slots,
    Vocabulary,
    WindowTokens,
)
from .settings import read_settings
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
    answer_slots: Slots = None,
    window_tokens: WindowTokens = None,
    questions: Questions = None,
    checkpointing: Checkpointing = None,
    skip_bad: SkipBad = False,
    new_head: NewHead = False,
    attention: Attention = None,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Predict the peak of a training step before any weight is allocated, and choose the micro-batch."""
    from jieyue import run

    materials = run.Materials(
        model=model,
        data=data or (),
        held_out=held_out or (),
        settings=read_settings(model, bool(data), answer_slots, window_tokens, seed),
        vocabulary=vocabulary,
        limit=questions,
        skip_bad=skip_bad,
        new_head=new_head,
        attention=attention,
    )
    course = run.Course(effective_batch=effective_batch, seed=seed, checkpointing=checkpointing)
    show(Door(as_json), run.plan("read", materials, budget=Budget.parse(budget, device), course=course))


@_doctor.command("read")
def doctor_read(
    files: Annotated[list[Path] | None, typer.Argument(help="Training files. Default: the corpus that ships.")] = None,
    held_out: HeldOut = None,
    model: Model = "tiny",
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
        settings=read_settings(model, bool(files), answer_slots, window_tokens, 0),
        limit=questions,
        skip_bad=skip_bad,
    )
    show(Door(as_json), run.doctor("read", materials))
