"""What a person types at a prompt, or a pipe sends: one message at a time, bad bytes told and passed over.

On a terminal a line can be edited and earlier ones come back with the arrow keys; what is pasted stays one message, whatever
its lines; Enter sends, Alt+Enter begins a new line. Over a pipe each line is a message.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

from prompt_toolkit import PromptSession
from prompt_toolkit.formatted_text import HTML
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from .console import Console

__all__ = ["piped", "prompter", "typed"]


def prompter() -> Callable[[], str]:
    """Asks for a message on the terminal. Ctrl-C raises ``KeyboardInterrupt``, Ctrl-D ``EOFError``."""
    keys = KeyBindings()

    @keys.add("enter")
    def send(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def begin_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    session: PromptSession[str] = PromptSession(key_bindings=keys, multiline=True, prompt_continuation="  ")
    return lambda: session.prompt(HTML("<ansicyan><b>› </b></ansicyan>"))


def typed(console: Console, ask: Callable[[], str]) -> Iterator[str]:
    """The messages of a person until Ctrl-D; Ctrl-C only empties the line."""
    while True:
        try:
            text = ask().strip()
            text.encode("utf-8")
        except EOFError:
            return
        except KeyboardInterrupt:
            console.say("")
        except UnicodeEncodeError:
            console.say("(not UTF-8: passed over)")
        else:
            yield text


def piped(console: Console) -> Iterator[str]:
    """The lines of standard input; one that is not UTF-8 is told and passed over."""
    number = 0
    while raw := sys.stdin.buffer.readline():
        number += 1
        try:
            yield raw.decode("utf-8").removeprefix("\ufeff").strip()
        except UnicodeDecodeError as error:
            console.say(f"(line {number} is not UTF-8 at byte {error.start + 1}: passed over)")
