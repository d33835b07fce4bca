"""The kinds of error, and the one form of message: what was asked, what was found, what is allowed, what to do."""

from collections.abc import Iterable
from difflib import get_close_matches
from os import PathLike
from pathlib import Path

__all__ = ["BudgetError", "InputError", "MissingExtra", "check_known", "check_least", "message", "near", "near_file"]


class InputError(ValueError):
    """A user's mistake: an argument, a file or a combination that cannot work. The command line prints it, exit code 2.

    Made of one text, or of the four parts of ``message``.

    >>> raise InputError("micro_batch", "0", "at least 1 row")
    Traceback (most recent call last):
    jieyue.errors.InputError: micro_batch: found 0, expected at least 1 row
    """

    def __init__(self, asked: str, found: str = "", allowed: str = "", do: str = "") -> None:
        super().__init__(message(asked, found, allowed, do) if found or allowed else asked)


class BudgetError(InputError):
    """Nothing fits what was allowed; the message says by how much, and what would fit.

    ``fixed_bytes``: what the process held without the model, where that was measured; so it need not be measured again.
    """

    fixed_bytes: int | None = None


class MissingExtra(InputError):
    """An optional dependency is not installed; the message is the pip command that installs it.

    >>> raise MissingExtra("local_attention", "bench")
    Traceback (most recent call last):
    jieyue.errors.MissingExtra: local_attention is not installed; run: pip install 'jieyue[bench]'
    """

    def __init__(self, module: str, extra: str) -> None:
        super().__init__(f"{module} is not installed; run: pip install 'jieyue[{extra}]'")


def message(asked: str, found: str, allowed: str, do: str = "") -> str:
    """One line of four parts, the last left out when there is nothing to advise.

    >>> message("attend(q, k, v)", "q of shape [4]", "q of shape [B, H, N, D]", "add the missing dimensions")
    'attend(q, k, v): found q of shape [4], expected q of shape [B, H, N, D]; add the missing dimensions'
    """
    return f"{asked}: found {found}, expected {allowed}" + (f"; {do}" if do else "")


def check_least(least: float, **given: float | None) -> None:
    """``InputError`` that names the first of these arguments below ``least``; None stands for one that was not given.

    >>> check_least(1, beams=3, reply_tokens=0)
    Traceback (most recent call last):
    jieyue.errors.InputError: reply_tokens=0: expected at least 1
    """
    for name, value in given.items():
        if value is not None and not value >= least:
            raise InputError(f"{name}={value}: expected at least {least}")


def check_known(asked: str, given: Iterable[str], known: Iterable[str]) -> None:
    """``InputError`` that names the first of these that is not known, and the nearest one that is.

    >>> check_known("options", ["stepz"], ["seed", "steps"])
    Traceback (most recent call last):
    jieyue.errors.InputError: options: found stepz, expected some of seed, steps, did you mean 'steps'?
    """
    names = list(known)
    if unknown := sorted(set(given) - set(names)):
        raise InputError(asked, unknown[0], f"some of {', '.join(names)}{near(unknown[0], names)}")


def near(asked: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """What to put behind an unknown name: ", did you mean X?", or nothing where no known one is alike.

    >>> near("tinny", ["tiny", "small"]), near("gpt2", ["tiny", "small"])
    (", did you mean 'tiny'?", '')
    """
    lower = {name.lower(): name for name in known}
    found = get_close_matches(asked.lower(), lower, n=1, cutoff=cutoff)
    return f", did you mean {lower[found[0]]!r}?" if found else ""


def near_file(asked: str | PathLike[str]) -> str:
    """As ``near``, among what lies in the folder where a file was looked for; the whole path is told."""
    path = Path(asked)
    try:
        beside = {one.name: str(path.with_name(one.name)) for one in path.parent.iterdir() if one.name[:1] != "."}
    except OSError:
        return ""
    beside.pop(path.name, None)  # it is there, but is something else than what was looked for
    found = get_close_matches(path.name, beside, n=1, cutoff=0.75)
    return f", did you mean {beside[found[0]]!r}?" if found else ""
