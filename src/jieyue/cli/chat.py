"""``jieyue chat DIR``: a model to talk to, in the terminal."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Generator
from dataclasses import replace
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from jieyue.errors import InputError, check_least
from jieyue.text import without_controls

from .console import Console
from .options import AsJson

if TYPE_CHECKING:
    from jieyue.run.conversation import Conversation

__all__ = ["add_to"]

Temperature = Annotated[float, typer.Option(help="0 = always the likeliest token.")]
HELP = """/clear        forget what was said
/retry        another reply to the last message
/undo         take back the last message and its reply
/seed [N]     say the same again from here on; without N differently each time
/save FILE    write the talk as JSON messages
/help         this
/exit         leave (or Ctrl-D); Ctrl-C stops a reply"""


def add_to(app: typer.Typer) -> None:
    """Registers every verb."""
    app.command("chat")(chat)


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
    as_json: AsJson = False,
) -> None:
    """Talk to a model: replies stream, /help lists what else there is. Over a pipe each line is a message."""
    check_least(1, max_tokens=max_tokens, candidates=candidates)
    check_least(2, context=context)
    from jieyue.decoding.sampling import Sampling
    from jieyue.hf.loading import head_of, load
    from jieyue.run.conversation import Conversation

    from .typed import piped, prompter, typed

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
    if (folder / "config.json").is_file() and head_of(folder) not in ("causal-lm", "masked-lm", None):
        raise InputError(
            str(folder), f"a model for {head_of(folder)}", "one that writes", "jieyue train chat makes one"
        )
    model, tokenizer = load(folder, "causal-lm")
    talk = Conversation(model, tokenizer, sampling, reply_tokens=max_tokens, context=context, candidates=candidates)
    console = Console(as_json)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # an output that has no such letters shows question marks and goes on
    if as_json or not _is_terminal():
        for line in piped(console):  # text alone: what begins with a slash is no command here
            if line and as_json:
                _replied(line, talk, console)
            elif line:
                _told(partial(talk.say, line), talk, console, False)
        return
    console.terminal.print(f"[bold]{escape(folder.resolve().name)}[/] [dim]/help lists the commands[/]")
    for line in typed(console, prompter()):
        if line.startswith("/") and "\n" not in line:
            if not _command(line, talk, console):
                return
        elif line:
            _told(partial(talk.say, line), talk, console, True)


def _is_terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()


def _command(line: str, talk: Conversation, console: Console) -> bool:
    """Does what a /command says; False to leave."""
    name, *words = line.split()
    try:
        if name in ("/exit", "/quit"):
            return False
        if name == "/clear":
            talk.clear()
            console.say("(forgotten)")
        elif name == "/retry":
            _told(talk.retry, talk, console, True)
        elif name == "/undo":
            console.say("(taken back)" if talk.undo() else "(nothing to take back)")
        elif name == "/seed":
            if words and not re.fullmatch(r"[+-]?[0-9]{1,19}", words[0]):
                raise InputError(f"/seed {words[0][:40]}: expected a whole number of 64 bits")
            talk.sampling = replace(talk.sampling, seed=int(words[0]) if words else None)
            console.say(f"(seed {talk.sampling.seed})" if words else "(another seed each time)")
        elif name == "/save":
            if not words:
                raise InputError("/save: expected a file")
            talk.save(Path(line.split(maxsplit=1)[1]))
            console.say(f"(saved {len(talk.messages)} messages)")
        else:
            console.say(HELP if name == "/help" else f"{name}: unknown\n{HELP}")
    except (InputError, OSError) as error:
        console.say(str(error))
    return True


def _replied(line: str, talk: Conversation, console: Console) -> None:
    """One JSON object for a message: the whole reply and what it took, or what was wrong."""
    try:
        reply = "".join(talk.say(line))
    except InputError as error:
        console.fact("refused", message=line, why=str(error))
        return
    console.fact("reply", message=line, reply=reply.strip(), tokens=talk.num_tokens, dropped=talk.num_dropped)


def _told(
    speak: Callable[[], Generator[str, None, None]], talk: Conversation, console: Console, is_terminal: bool
) -> None:
    """Prints a reply as it comes. Ctrl-C ends the reply, not the chat."""
    pieces = speak()
    try:
        for piece in pieces:
            sys.stdout.write(without_controls(piece))
            sys.stdout.flush()
    except KeyboardInterrupt:
        sys.stdout.write(" …")
    except InputError as error:
        console.say(str(error))
        return
    finally:
        pieces.close()
    sys.stdout.write("\n")
    sys.stdout.flush()
    if is_terminal:
        dropped = f" · {talk.num_dropped} oldest turns dropped" if talk.num_dropped else ""
        speed = talk.num_tokens / max(talk.seconds, 1e-9)
        console.terminal.print(f"[dim]{talk.num_tokens} tokens · {speed:.0f} tokens/s{dropped}[/]")
