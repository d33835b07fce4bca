"""Dialogue on the command line: ``train chat``, ``plan chat``, ``doctor chat``, and ``chat DIR`` in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from jieyue.budget import Budget, parse_seconds
from jieyue.errors import InputError

from .console import Door, show
from .options import (
    AsJson,
    Attention,
    BudgetText,
    Checkpointing,
    Device,
    EffectiveBatch,
    Epochs,
    LearningRate,
    Limit,
    Out,
    Resume,
    SaveSteps,
    Seed,
    SkipBad,
    Steps,
    Time,
    Vocabulary,
)

__all__ = ["add_to", "doctor_chat", "plan_chat", "train_chat"]

CausalModel = Annotated[str, typer.Option("--model", help="A preset (tiny, small), a folder or a hub name.")]
Dialogues = Annotated[
    list[Path] | None,
    typer.Option(
        "--data", help="Dialogues (LCCC, CDial-GPT, OpenAI messages; .gz, .xz). Default: the corpus that ships."
    ),
]
HeldOutDialogues = Annotated[
    list[Path] | None, typer.Option("--held-out", help="Dialogues to judge by. Default: a fiftieth of --data.")
]
LossOn = Annotated[str, typer.Option(help="What is learned: all turns, replies or the last turn.")]
MaxTokens = Annotated[int | None, typer.Option(help="Longest dialogue; longer ones lose whole oldest turns.")]
Temperature = Annotated[float, typer.Option(help="0 = always the likeliest token.")]
HELP = """/clear        forget what was said
/retry        another reply to the last message
/undo         take back the last message and its reply
/seed [N]     say the same again from here on; without N differently each time
/save FILE    write the talk as JSON messages
/help         this
/exit         leave (or Ctrl-D); Ctrl-C stops a reply"""


def add_to(app: typer.Typer) -> None:
    """Registers ``chat``; the others are registered with their families."""
    app.command("chat")(chat)


def train_chat(
    model: CausalModel = "tiny",
    out: Out = Path("runs/chat"),
    data: Dialogues = None,
    held_out: HeldOutDialogues = None,
    budget: BudgetText = "4GiB",
    effective_batch: EffectiveBatch = 8,
    steps: Steps = None,
    epochs: Epochs = None,
    time: Time = None,
    learning_rate: LearningRate = None,
    seed: Seed = 0,
    vocabulary: Vocabulary = None,
    loss_on: LossOn = "all",
    max_tokens: MaxTokens = None,
    limit: Limit = None,
    checkpointing: Checkpointing = None,
    save_steps: SaveSteps = 200,
    skip_bad: SkipBad = False,
    attention: Attention = None,
    device: Device = "cpu",
    resume: Resume = False,
    as_json: AsJson = False,
) -> None:
    """Train a model to talk: plan, train, evaluate, report."""
    from jieyue import run

    from .train import run_recipe

    course = run.Course(
        effective_batch=effective_batch,
        steps=steps,
        epochs=epochs,
        seconds=None if time is None else parse_seconds(time, "time"),
        learning_rate=learning_rate,
        seed=seed,
        checkpointing=checkpointing,
        save_steps=save_steps,
    )
    materials = _with_settings(
        run.Materials(
            model=model,
            data=data or (),
            held_out=held_out or (),
            vocabulary=vocabulary,
            limit=limit,
            skip_bad=skip_bad,
            attention=attention,
        ),
        loss_on,
        max_tokens,
    )
    run_recipe(
        "chat",
        materials,
        course,
        out,
        budget=budget,
        device=device,
        resume=resume,
        as_json=as_json,
        then="jieyue chat {}",
    )


def plan_chat(
    model: CausalModel = "tiny",
    data: Dialogues = None,
    held_out: HeldOutDialogues = None,
    budget: BudgetText = "4GiB",
    effective_batch: EffectiveBatch = 8,
    seed: Seed = 0,
    vocabulary: Vocabulary = None,
    loss_on: LossOn = "all",
    max_tokens: MaxTokens = None,
    limit: Limit = None,
    checkpointing: Checkpointing = None,
    skip_bad: SkipBad = False,
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
        vocabulary=vocabulary,
        limit=limit,
        skip_bad=skip_bad,
        attention=attention,
    )
    course = run.Course(effective_batch=effective_batch, seed=seed, checkpointing=checkpointing)
    materials = _with_settings(materials, loss_on, max_tokens)
    show(Door(as_json), run.plan("chat", materials, budget=Budget.parse(budget, device), course=course))


def doctor_chat(
    files: Annotated[list[Path] | None, typer.Argument(help="Training files. Default: the corpus that ships.")] = None,
    held_out: HeldOutDialogues = None,
    model: CausalModel = "tiny",
    loss_on: LossOn = "all",
    max_tokens: MaxTokens = None,
    limit: Limit = None,
    skip_bad: SkipBad = False,
    as_json: AsJson = False,
) -> None:
    """Count everything that is wrong with the dialogues, or will be cut, before training; contamination too."""
    from jieyue import run

    materials = run.Materials(model=model, data=files or (), held_out=held_out or (), limit=limit, skip_bad=skip_bad)
    show(Door(as_json), run.doctor("chat", _with_settings(materials, loss_on, max_tokens)))


def _with_settings(materials: Any, loss_on: str, max_tokens: int | None) -> Any:
    """The materials with dialogue settings of these flags."""
    from jieyue import run

    settings = run.task("chat").settings(materials, 0)
    most = max_tokens or settings.max_tokens
    packed = None if settings.row_tokens is None else most
    return replace(materials, settings=replace(settings, loss_on=loss_on, max_tokens=most, row_tokens=packed))


def chat(
    folder: Annotated[Path, typer.Argument(help="Folder of a model that writes.")],
    temperature: Temperature = 1.0,
    top_k: Annotated[int, typer.Option(help="Draw from so many likeliest tokens; 0 = all.")] = 5,
    top_p: Annotated[float, typer.Option(help="Draw from the likeliest tokens that reach this share.")] = 1.0,
    min_p: Annotated[float, typer.Option(help="Leave out what is less likely than this share of the likeliest.")] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1: what was said becomes less likely.")] = 1.0,
    no_repeat_ngram: Annotated[int, typer.Option(help="Never say so many tokens in a row twice; 0 = may.")] = 0,
    min_tokens: Annotated[int, typer.Option(help="The shortest reply.")] = 0,
    max_tokens: Annotated[int, typer.Option(help="The longest reply.")] = 128,
    context: Annotated[int | None, typer.Option(help="Tokens of talk and reply; more lose whole oldest turns.")] = None,
    candidates: Annotated[int, typer.Option(help="Draw so many replies, tell the most informative (MMI).")] = 1,
    seed: Annotated[int | None, typer.Option(help="Say the same again.")] = None,
) -> None:
    """Talk to a model: replies stream, /help lists what else there is. Works over a pipe, a message a line."""
    from jieyue.decoding.sampling import Sampling
    from jieyue.hf.loading import load
    from jieyue.run.conversation import Conversation

    sampling = Sampling(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        no_repeat_ngram=no_repeat_ngram,
        min_tokens=min_tokens,
        seed=seed,
    )
    model, tokenizer = load(folder, "causal-lm")
    talk = Conversation(model, tokenizer, sampling, reply_tokens=max_tokens, context=context, candidates=candidates)
    door, is_terminal = Door(), sys.stdin.isatty()
    if is_terminal:
        door.console.print(f"[bold]{escape(folder.resolve().name)}[/] [dim]/help lists the commands[/]")
    for line in _lines(door, is_terminal):
        if line.startswith("/"):
            if not _command(line, talk, door, is_terminal):
                return
        elif line.strip():
            _told(partial(talk.say, line), talk, door, is_terminal)


def _lines(door: Door, is_terminal: bool) -> Iterator[str]:
    """The user's lines until the end of input; Ctrl-C at the prompt only empties it."""
    while True:
        try:
            if is_terminal:
                yield door.console.input("[bold cyan]› [/]").strip()
            else:
                raw = sys.stdin.buffer.readline()
                if not raw:
                    return
                yield raw.decode("utf-8", "replace").removeprefix("\ufeff").strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            if not is_terminal:
                raise
            door.say("")


def _command(line: str, talk: Any, door: Door, is_terminal: bool) -> bool:
    """Does what a /command says; False to leave."""
    name, *words = line.split()
    try:
        if name in ("/exit", "/quit"):
            return False
        if name == "/clear":
            talk.clear()
            door.say("(forgotten)")
        elif name == "/retry":
            _told(talk.retry, talk, door, is_terminal)
        elif name == "/undo":
            door.say("(taken back)" if talk.undo() else "(nothing to take back)")
        elif name == "/seed":
            if words and not words[0].lstrip("-").isdigit():
                raise InputError(f"/seed {words[0]}: expected a whole number")
            talk.sampling = replace(talk.sampling, seed=int(words[0]) if words else None)
            door.say(f"(seed {words[0]})" if words else "(another seed each time)")
        elif name == "/save":
            if not words:
                raise InputError("/save: expected a file")
            talk.save(Path(line.split(maxsplit=1)[1]))
            door.say(f"(saved {len(talk.messages)} messages)")
        else:
            door.say(HELP if name == "/help" else f"{name}: unknown\n{HELP}")
    except (InputError, OSError) as error:
        door.say(str(error))
    return True


def _told(speak: Callable[[], Iterator[str]], talk: Any, door: Door, is_terminal: bool) -> None:
    """Prints a reply as it comes. Ctrl-C ends the reply, not the chat."""
    pieces = speak()
    try:
        for piece in pieces:
            sys.stdout.write(piece)
            sys.stdout.flush()
    except KeyboardInterrupt:
        sys.stdout.write(" …")
    except InputError as error:
        door.say(str(error))
        return
    finally:
        pieces.close()  # type: ignore[attr-defined]
    sys.stdout.write("\n")
    sys.stdout.flush()
    if is_terminal:
        dropped = f" · {talk.num_dropped} oldest turns dropped" if talk.num_dropped else ""
        speed = talk.num_tokens / max(talk.seconds, 1e-9)
        door.console.print(f"[dim]{talk.num_tokens} tokens · {speed:.0f} tokens/s{dropped}[/]")
