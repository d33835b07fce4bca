"""The verbs: train, evaluate, plan, doctor, read. Each is a typed function; its parameters are its flags."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from jieyue.budget import parse_seconds
from jieyue.errors import InputError

from .console import Door, decoded, read_text, show
from .options import (
    AsJson,
    Attention,
    BatchSize,
    BudgetText,
    Checkpointing,
    Data,
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

__all__ = ["add_to"]

_train = typer.Typer(help="Train a model by recipe, under a budget.", no_args_is_help=True)
_plan = typer.Typer(help="Say what training would cost and choose the settings; train nothing.", no_args_is_help=True)
_doctor = typer.Typer(help="Check data before training.", no_args_is_help=True)


def add_to(app: typer.Typer) -> None:
    """Registers every verb."""
    app.add_typer(_train, name="train")
    app.add_typer(_plan, name="plan")
    app.add_typer(_doctor, name="doctor")
    app.command("evaluate")(evaluate)
    app.command("read")(read)


@_train.command("read")
def train_read(
    model: Model = "tiny",
    out: Annotated[Path, typer.Option(help="Folder for the model, its card, checkpoints and the report.")] = Path(
        "runs/reader"
    ),
    data: Data = None,
    held_out: HeldOut = None,
    budget: BudgetText = "4GiB",
    effective_batch: EffectiveBatch = 32,
    steps: Annotated[int | None, typer.Option(help="Updates to train for.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the rows (default 2).")] = None,
    time: Annotated[
        str | None, typer.Option(help="Train for about this long, such as 4min: turned into updates first.")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Default: 1e-3 for a preset, 3e-5 for a checkpoint.")
    ] = None,
    seed: Seed = 0,
    start: Annotated[
        str, typer.Option(help="How a preset's weights begin: orthogonal-copy or normal.")
    ] = "orthogonal-copy",
    curriculum: Annotated[
        str | None, typer.Option(help="Passages grow: sentences:share of the updates, such as 1:0.22,2:0.42, or none.")
    ] = None,
    vocabulary: Vocabulary = None,
    answer_slots: Slots = None,
    window_tokens: WindowTokens = None,
    questions: Questions = None,
    checkpointing: Checkpointing = None,
    save_steps: Annotated[int, typer.Option(help="Updates between checkpoints.")] = 200,
    skip_bad: SkipBad = False,
    new_head: NewHead = False,
    attention: Attention = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint in --out, with the same flags.")
    ] = False,
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
    door = Door(as_json)
    materials = run.Materials(
        model=model,
        data=data or (),
        held_out=held_out or (),
        settings=_settings(model, bool(data), answer_slots, window_tokens, seed),
        vocabulary=vocabulary,
        questions=questions,
        skip_bad=skip_bad,
        new_head=new_head,
        attention=attention,
    )
    report = run.train(
        materials,
        out,
        budget=budget,
        course=course,
        device=device,
        resume=resume,
        command=shlex.join(["jieyue", *sys.argv[1:]]),
        watch=door,
    )
    show(door, report, ("Quality on held-out questions", "Memory"))
    door.fact("saved", model=str(out), report=str(out / "report.html"))
    if not as_json:
        place = shlex.quote(str(out))
        door.say(f"\nNext:\n  jieyue evaluate {place}\n  jieyue read {place} --question '…' --file passage.txt")


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
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    as_json: AsJson = False,
) -> None:
    """Predict the peak of a training step before any weight is allocated, and choose the micro-batch."""
    from jieyue import run

    materials = run.Materials(
        model=model,
        data=data or (),
        held_out=held_out or (),
        settings=_settings(model, bool(data), answer_slots, window_tokens, seed),
        vocabulary=vocabulary,
        questions=questions,
        skip_bad=skip_bad,
        new_head=new_head,
        attention=attention,
    )
    course = run.Course(effective_batch=effective_batch, seed=seed, checkpointing=checkpointing)
    report = run.plan(materials, budget=budget, course=course, device=device)
    show(Door(as_json), report)


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
        settings=_settings(model, bool(files), answer_slots, window_tokens, 0),
        questions=questions,
        skip_bad=skip_bad,
    )
    show(Door(as_json), run.doctor(materials))


def evaluate(
    folder: Annotated[Path, typer.Argument(help="Folder of a trained model.")],
    files: Annotated[
        list[Path] | None, typer.Argument(help="Questions. Default: the held-out part that ships.")
    ] = None,
    batch_size: BatchSize = 32,
    skip_bad: SkipBad = False,
    out: Annotated[Path | None, typer.Option(help="Folder for a report of this evaluation.")] = None,
    as_json: AsJson = False,
) -> None:
    """Judge a trained model on questions with known answers."""
    from jieyue import run

    door = Door(as_json)
    report = run.evaluate(folder, files or (), batch_size=batch_size, skip_bad=skip_bad, watch=door)
    show(door, report, ("Quality on held-out questions", "Confidence", "Data"), out=out)


def read(
    folder: Annotated[Path, typer.Argument(help="Folder of a trained reader.")],
    question: Annotated[str, typer.Option(help="The question.")],
    text: Annotated[list[str] | None, typer.Option(help="A passage; several vote.")] = None,
    file: Annotated[
        list[Path] | None, typer.Option(help="A file with a passage; several vote. Default: standard input.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Answer a question from passages: text, files or standard input."""
    from jieyue import run

    passages = [*(text or ()), *(read_text(path) for path in file or ())]
    if not passages:
        if sys.stdin.isatty():
            raise InputError("read: found no passage, expected --text, --file or a passage on standard input")
        passages = [decoded(sys.stdin.buffer.read(), "standard input")]
    answer = run.read(folder, question, passages)
    if as_json:
        sys.stdout.write(json.dumps(answer, ensure_ascii=False) + "\n")
        return
    door = Door()
    if not answer["answer"]:
        door.say(f"(no answer in the passage; confidence {answer['confidence']:.2f})")
        return
    door.say(answer["answer"])
    where = f"passage {answer['passage'] + 1}, " if len(passages) > 1 else ""
    door.say(f"  {where}characters {answer['start']}–{answer['end']}, confidence {answer['confidence']:.2f}")


def _settings(model: str, own_data: bool, answer_slots: int | None, window_tokens: int | None, seed: int) -> Any:
    """None (decide for me) unless a length was given."""
    from jieyue import run

    if answer_slots is None and window_tokens is None:
        return None
    settings = run.default_settings(model, own_data, seed)
    overlap = settings.overlap_tokens if window_tokens is None else min(settings.overlap_tokens, window_tokens // 4)
    return replace(
        settings,
        answer_slots=answer_slots or settings.answer_slots,
        window_tokens=window_tokens or settings.window_tokens,
        overlap_tokens=overlap,
    )
