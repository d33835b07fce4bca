"""``jieyue train RECIPE``: plan, train, judge, report. One verb a recipe; its flags are its parameters."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from jieyue.budget import Budget, parse_seconds

from .chat import train_chat
from .console import Door, show
from .options import (
    AsJson,
    Attention,
    BudgetText,
    Checkpointing,
    Data,
    Device,
    EffectiveBatch,
    Epochs,
    HeldOut,
    LabelColumn,
    Labelled,
    LearningRate,
    Limit,
    MaxTokens,
    Model,
    NewHead,
    Out,
    PairColumn,
    PlainText,
    PseudoRows,
    Questions,
    ReaderKind,
    Resume,
    SaveSteps,
    Search,
    Seed,
    Share,
    SkipBad,
    Slots,
    Start,
    Steps,
    TextColumn,
    Time,
    Unshare,
    UnshareAfter,
    Vocabulary,
    WholeWords,
    WindowTokens,
)
from .settings import blocks, read_settings
from .title import train_title

__all__ = ["add_to", "run_recipe"]

_train = typer.Typer(help="Train a model by recipe, under a budget.", no_args_is_help=True)


def add_to(app: typer.Typer) -> None:
    """Registers every verb."""
    _train.command("title")(train_title)
    _train.command("chat")(train_chat)
    app.add_typer(_train, name="train")


@_train.command("read")
def train_read(
    model: Model = "tiny",
    out: Out = Path("runs/reader"),
    data: Data = None,
    held_out: HeldOut = None,
    budget: BudgetText = "4GiB",
    effective_batch: EffectiveBatch = 32,
    steps: Steps = None,
    epochs: Epochs = None,
    time: Time = None,
    learning_rate: LearningRate = None,
    seed: Seed = 0,
    start: Start = None,
    curriculum: Annotated[
        str | None, typer.Option(help="Passages grow: sentences:share of the updates, such as 1:0.22,2:0.42, or none.")
    ] = None,
    vocabulary: Vocabulary = None,
    reader: ReaderKind = None,
    answer_slots: Slots = None,
    window_tokens: WindowTokens = None,
    search: Search = None,
    questions: Questions = None,
    checkpointing: Checkpointing = None,
    save_steps: SaveSteps = 200,
    skip_bad: SkipBad = False,
    new_head: NewHead = False,
    attention: Attention = None,
    unshare: Unshare = None,
    unshare_after: UnshareAfter = 0,
    device: Device = "cpu",
    resume: Resume = False,
    as_json: AsJson = False,
) -> None:
    """Train a reader: plan, train, evaluate, report."""
    from jieyue import run

    course = run.Course(
        effective_batch=effective_batch,
        steps=steps,
        epochs=epochs,
        seconds=None if time is None else parse_seconds(time, "time"),
        learning_rate=learning_rate,
        seed=seed,
        start=start,
        curriculum=curriculum,
        checkpointing=checkpointing,
        save_steps=save_steps,
    )
    materials = run.Materials(
        model=model,
        data=data or (),
        held_out=held_out or (),
        settings=read_settings(model, bool(data), answer_slots, window_tokens, seed, search, reader),
        vocabulary=vocabulary,
        limit=questions,
        skip_bad=skip_bad,
        new_head=new_head,
        attention=attention,
        unshare=blocks(unshare),
        unshare_after=unshare_after,
    )
    run_recipe(
        "read",
        materials,
        course,
        out,
        budget=budget,
        device=device,
        resume=resume,
        as_json=as_json,
        then="jieyue read {} --question '…' --file passage.txt",
    )


@_train.command("classify")
def train_classify(
    model: Model = "tiny",
    out: Out = Path("runs/classifier"),
    data: Labelled = None,
    held_out: HeldOut = None,
    budget: BudgetText = "4GiB",
    effective_batch: EffectiveBatch = 32,
    steps: Steps = None,
    epochs: Epochs = None,
    time: Time = None,
    learning_rate: LearningRate = None,
    seed: Seed = 0,
    start: Start = None,
    vocabulary: Vocabulary = None,
    max_tokens: MaxTokens = 128,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    pair_column: PairColumn = None,
    limit: Limit = None,
    checkpointing: Checkpointing = None,
    save_steps: SaveSteps = 200,
    skip_bad: SkipBad = False,
    new_head: NewHead = False,
    attention: Attention = None,
    unshare: Unshare = None,
    unshare_after: UnshareAfter = 0,
    device: Device = "cpu",
    resume: Resume = False,
    as_json: AsJson = False,
) -> None:
    """Train a text classifier: plan, train, evaluate, report."""
    from jieyue import run
    from jieyue.recipes.classify import ClassifySettings

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
    )
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
    run_recipe(
        "classify",
        materials,
        course,
        out,
        budget=budget,
        device=device,
        resume=resume,
        as_json=as_json,
        then="jieyue evaluate {} FILE.tsv",
    )


@_train.command("mlm")
def train_mlm(
    model: Model = "tiny",
    out: Out = Path("runs/mlm"),
    data: PlainText = None,
    held_out: HeldOut = None,
    budget: BudgetText = "4GiB",
    effective_batch: EffectiveBatch = 32,
    steps: Steps = None,
    epochs: Epochs = None,
    time: Time = None,
    learning_rate: LearningRate = None,
    seed: Seed = 0,
    start: Start = None,
    vocabulary: Vocabulary = None,
    max_tokens: MaxTokens = 128,
    share: Share = 0.15,
    whole_words: WholeWords = False,
    pseudo_rows: PseudoRows = 16,
    limit: Limit = None,
    checkpointing: Checkpointing = None,
    save_steps: SaveSteps = 200,
    skip_bad: SkipBad = False,
    new_head: NewHead = False,
    attention: Attention = None,
    unshare: Unshare = None,
    unshare_after: UnshareAfter = 0,
    device: Device = "cpu",
    resume: Resume = False,
    as_json: AsJson = False,
) -> None:
    """Train a masked language model on plain text: plan, train, evaluate, report."""
    from jieyue import run
    from jieyue.recipes.mlm import MaskSettings

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
    )
    materials = run.Materials(
        model=model,
        data=data or (),
        held_out=held_out or (),
        settings=MaskSettings(
            max_tokens=max_tokens, share=share, whole_words=whole_words, pseudo_rows=pseudo_rows, seed=seed
        ),
        vocabulary=vocabulary,
        limit=limit,
        skip_bad=skip_bad,
        new_head=new_head,
        attention=attention,
        unshare=blocks(unshare),
        unshare_after=unshare_after,
    )
    run_recipe(
        "mlm",
        materials,
        course,
        out,
        budget=budget,
        device=device,
        resume=resume,
        as_json=as_json,
        then="jieyue train classify --model {}",
    )


def run_recipe(
    recipe: str,
    materials: Any,
    course: Any,
    out: Path,
    *,
    budget: str,
    device: str,
    resume: bool,
    as_json: bool,
    then: str,
) -> None:
    """Trains and shows; ``then``: the command to try next, with {} for the folder."""
    from jieyue import run

    door = Door(as_json)
    try:
        report = run.train(
            recipe,
            materials,
            out,
            budget=Budget.parse(budget, device),
            course=course,
            resume=resume,
            command=shlex.join(["jieyue", *sys.argv[1:]]),
            watch=door,
        )
    except KeyboardInterrupt as stopped:
        door.say(f"{stopped or 'stopped before the first update'}; the same command with --resume goes on from there")
        raise typer.Exit(130) from None
    if not door.speaks:  # another process of the same torchrun reports
        return
    show(door, report, (*run.task(recipe).shown, "Memory"))
    door.fact("saved", model=str(out), report=str(out / "report.html"))
    if not as_json:
        place = shlex.quote(str(out))
        door.say(f"\nNext:\n  jieyue evaluate {place}\n  {then.format(place)}")
