"""Dialogue on the command line: ``train chat``, ``plan chat``, ``doctor chat``, and ``chat DIR`` in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from jieyue.errors import InputError

from .bundles import Backbone, Planning, Running, Training
from .console import Door
from .jobs import examine, plan_recipe, train_recipe
from .options import AsJson, Attention, Limit, Out, SkipBad, TrainingFiles, Vocabulary

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


@dataclass(frozen=True, kw_only=True)
class Talk:
    """What of a dialogue is learned."""

    loss_on: LossOn = "all"
    max_tokens: MaxTokens = None

    def settings(self, model: str, data: Sequence[Path] | None, attention: str | None = None) -> Any:
        """``ChatSettings`` of these flags, for this model, these files and this pattern of attention."""
        from jieyue import run

        own = run.task("chat").settings(run.Materials(model=model, data=data or (), attention=attention), 0)
        most = self.max_tokens or own.max_tokens
        packed = None if own.row_tokens is None else most
        return replace(own, loss_on=self.loss_on, max_tokens=most, row_tokens=packed)


@dataclass(frozen=True, kw_only=True)
class TalkBackbone:
    """The flags of ``Backbone`` that a talker has."""

    vocabulary: Vocabulary = None
    skip_bad: SkipBad = False
    attention: Attention = None

    def materials(self, **more: Any) -> Any:
        """As ``Backbone.materials``."""
        return Backbone(**vars(self)).materials(**more)


def train_chat(
    model: CausalModel = "tiny",
    out: Out = Path("runs/chat"),
    data: Dialogues = None,
    held_out: HeldOutDialogues = None,
    training: Training = Training(effective_batch=8),
    talk: Talk = Talk(),
    limit: Limit = None,
    backbone: TalkBackbone = TalkBackbone(),
    running: Running = Running(),
) -> None:
    """Train a model to talk: plan, train, evaluate, report."""
    settings = talk.settings(model, data, backbone.attention)
    materials = backbone.materials(model=model, data=data, held_out=held_out, settings=settings, limit=limit)
    train_recipe("chat", materials, training.course(), out, running, then="jieyue chat {}")


def plan_chat(
    model: CausalModel = "tiny",
    data: Dialogues = None,
    held_out: HeldOutDialogues = None,
    talk: Talk = Talk(),
    limit: Limit = None,
    backbone: TalkBackbone = TalkBackbone(),
    planning: Planning = Planning(effective_batch=8),
) -> None:
    """Predict the peak of a training step before any weight is allocated, and choose the micro-batch."""
    settings = talk.settings(model, data, backbone.attention)
    materials = backbone.materials(model=model, data=data, held_out=held_out, settings=settings, limit=limit)
    plan_recipe("chat", materials, planning.course(), planning)


def doctor_chat(
    files: TrainingFiles = None,
    held_out: HeldOutDialogues = None,
    model: CausalModel = "tiny",
    talk: Talk = Talk(),
    limit: Limit = None,
    skip_bad: SkipBad = False,
    as_json: AsJson = False,
) -> None:
    """Count everything that is wrong with the dialogues, or will be cut, before training; contamination too."""
    settings = talk.settings(model, files)
    examine(
        "chat", as_json, model=model, data=files, held_out=held_out, settings=settings, limit=limit, skip_bad=skip_bad
    )


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
