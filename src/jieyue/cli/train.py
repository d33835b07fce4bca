"""``jieyue train RECIPE``: plan, train, judge, report. One verb a recipe; its flags are its parameters and its bundles'."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .bundles import Backbone, Columns, Hidden, Running, Training, spread
from .chat import train_chat
from .jobs import train_recipe
from .optional import VerbGroup
from .options import (
    Data,
    HeldOut,
    Labelled,
    Limit,
    Model,
    Out,
    PlainText,
    PseudoRows,
    Questions,
    ReaderKind,
    Search,
    Slots,
    Start,
    WindowTokens,
)
from .settings import read_settings
from .title import train_title

__all__ = ["add_to"]

_train = typer.Typer(cls=VerbGroup, help="Train a model by recipe, under a budget.", no_args_is_help=True)


def add_to(app: typer.Typer) -> None:
    """Registers every verb."""
    _train.command("title")(spread(train_title))
    _train.command("chat")(spread(train_chat))
    app.add_typer(_train, name="train")


@_train.command("read")
@spread
def train_read(
    model: Model = "tiny",
    out: Out = Path("runs/reader"),
    data: Data = None,
    held_out: HeldOut = None,
    training: Training = Training(),
    start: Start = None,
    curriculum: Annotated[
        str | None, typer.Option(help="Passages grow: sentences:share of the updates, such as 1:0.22,2:0.42, or none.")
    ] = None,
    reader: ReaderKind = None,
    answer_slots: Slots = None,
    window_tokens: WindowTokens = None,
    search: Search = None,
    questions: Questions = None,
    backbone: Backbone = Backbone(),
    running: Running = Running(),
) -> None:
    """Train a reader: plan, train, evaluate, report."""
    settings = read_settings(model, bool(data), answer_slots, window_tokens, training.seed, search, reader)
    materials = backbone.materials(model=model, data=data, held_out=held_out, settings=settings, limit=questions)
    course = training.course(start=start, curriculum=curriculum)
    train_recipe("read", materials, course, out, running, then="jieyue read {} --question '…' --file passage.txt")


@_train.command("classify")
@spread
def train_classify(
    model: Model = "tiny",
    out: Out = Path("runs/classifier"),
    data: Labelled = None,
    held_out: HeldOut = None,
    training: Training = Training(),
    start: Start = None,
    columns: Columns = Columns(),
    limit: Limit = None,
    backbone: Backbone = Backbone(),
    running: Running = Running(),
) -> None:
    """Train a text classifier: plan, train, evaluate, report."""
    settings = columns.settings()
    materials = backbone.materials(model=model, data=data, held_out=held_out, settings=settings, limit=limit)
    train_recipe("classify", materials, training.course(start=start), out, running, then="jieyue evaluate {} FILE.tsv")


@_train.command("mlm")
@spread
def train_mlm(
    model: Model = "tiny",
    out: Out = Path("runs/mlm"),
    data: PlainText = None,
    held_out: HeldOut = None,
    training: Training = Training(),
    start: Start = None,
    hidden: Hidden = Hidden(),
    pseudo_rows: PseudoRows = 16,
    limit: Limit = None,
    backbone: Backbone = Backbone(),
    running: Running = Running(),
) -> None:
    """Train a masked language model on plain text: plan, train, evaluate, report."""
    settings = hidden.settings(pseudo_rows=pseudo_rows, seed=training.seed)
    materials = backbone.materials(model=model, data=data, held_out=held_out, settings=settings, limit=limit)
    train_recipe("mlm", materials, training.course(start=start), out, running, then="jieyue train classify --model {}")
