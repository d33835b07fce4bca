"""The command line. A verb is a typed function with a docstring; its flags are its parameters."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from jieyue import __version__
from jieyue.errors import InputError

from .allocator import start_again
from .help import explained
from .language import FLAG, choose, said, speak

__all__ = ["build", "main"]


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"jieyue {__version__}")
        raise typer.Exit


def _start(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    lang: Annotated[
        str, typer.Option(FLAG, metavar="en|zh", help="Language of help, findings and reports. Default: that of LANG.")
    ] = "en",
) -> None:
    """Transformers on a budget: every saving is proven exact, or its price is measured."""


_ROOMS = {
    "sparsify": ("sparsify",),
    "compare": ("compare",),
    "answer": ("evaluate", "read"),
    "predict": ("predict", "classify", "tag"),
    "title": ("title",),
    "chat": ("chat",),
    "serve": ("serve",),
    "export": ("export",),
    "push": ("push",),
    "measure": ("bench", "verify", "fit"),
    "reproduce": ("reproduce",),
}  # modules here, and the verbs that each registers
_BY_TASK = ("train", "doctor", "plan")  # these three are made together


@cache
def build(verb: str = "") -> typer.Typer:
    """The whole command line, verbs and flags; of a known ``verb`` that one alone, so that it starts sooner."""
    is_whole = verb not in {*_BY_TASK, *(name for names in _ROOMS.values() for name in names)}
    app = typer.Typer(
        name="jieyue",
        help="Transformers on a budget: every saving is proven exact, or its price is measured.",
        no_args_is_help=True,
        add_completion=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["--help", "-h"]},
    )
    app.callback()(_start)
    if is_whole or verb in _BY_TASK:
        _add_tasks(app)
    for room, verbs in _ROOMS.items():
        if is_whole or verb in verbs:
            import_module(f".{room}", __package__).add_to(app)
    return explained(app)


def _add_tasks(app: typer.Typer) -> None:
    from . import plan, tasks

    tasks.add_to(app, plan.add_to(app))


def main() -> None:
    """Runs the command line; a user's mistake is one line on standard error and exit code 2, never a traceback."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler, which counts bytes, talks too much
    warnings.formatwarning = warning_line
    try:
        language, arguments = choose(sys.argv[1:], os.environ)
        speak(language)
        start_again(arguments)
        with _terminated_gently():
            code = build(arguments[0] if arguments else "")(arguments, prog_name="jieyue", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except _UsageError as error:
        _tell_usage(error)
        sys.exit(2)
    except typer.Abort:
        sys.stderr.write(f"jieyue: {said('stopped')}\n")
        sys.exit(1)
    except InputError as error:
        sys.stderr.write(f"jieyue: {said(str(error))}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stderr.write(f"jieyue: {said('stopped')}\n")
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:
        if error.errno not in _OF_FILES or (error.filename is None and error.errno not in _NO_ROOM):
            raise
        left = "; nothing was left half-written" if error.errno in _NO_ROOM else ""
        sys.stderr.write(f"jieyue: {error.filename or 'a file'}: {error.strerror}{left}\n")
        sys.exit(2)


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_OF_FILES = (
    *(*_NO_ROOM, errno.EACCES, errno.EPERM, errno.ENOENT, errno.EEXIST, errno.EISDIR, errno.ENOTDIR),
    errno.ENAMETOOLONG,
)

# click's UsageError: typer names it nowhere, and keeps a click of its own or not, by version
_UsageError: type[typer.BadParameter] = typer.BadParameter.__bases__[0]


def _tell_usage(error: typer.BadParameter) -> None:
    """A wrong verb, flag or argument as one line, with the help that lists the right ones; a verb alone is told its help."""
    text = error.format_message()
    path = "jieyue" if error.ctx is None else error.ctx.command_path
    if error.ctx is not None and text == error.ctx.get_help():
        error.show()
    else:
        line = f"{' '.join(text.split()).rstrip('.')}; see `{path} --help`"
        sys.stderr.write(f"jieyue: {said(line)}\n")


def warning_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning of ours as one line for people; those of others with their place, as Python writes them."""
    if Path(__file__).parents[1] in Path(filename).parents:
        return f"jieyue: {said(str(message))}\n"
    return f"{filename}:{lineno}: {category.__name__}: {message}\n"


@contextmanager
def _terminated_gently() -> Iterator[None]:
    """SIGTERM ends a verb as an exit does, so that what it has begun is put away: temporary files, children, locks.

    Where it comes while a weak reference is told that its object is gone, as of every tensor of a trace, Python ignores what is
    raised there, Ctrl-C's as well: it is sent again a moment later.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    def ignored(unraisable: sys.UnraisableHookArgs) -> None:
        error = unraisable.exc_value
        number = signal.SIGINT if isinstance(error, KeyboardInterrupt) else signal.SIGTERM
        if not isinstance(error, KeyboardInterrupt) and not (
            isinstance(error, SystemExit) and error.code == 128 + number
        ):
            hook(unraisable)
            return
        again = threading.Timer(0.05, os.kill, (os.getpid(), number))
        again.daemon = True
        again.start()

    before, hook = signal.signal(signal.SIGTERM, leave), sys.unraisablehook
    sys.unraisablehook = ignored
    try:
        yield
    finally:
        sys.unraisablehook = hook
        signal.signal(signal.SIGTERM, before)
