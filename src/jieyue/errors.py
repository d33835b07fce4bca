"""The kinds of error, and the one form of message: what was asked, what was found, what is allowed, what to do."""

__all__ = ["BudgetError", "InputError", "MissingExtra", "message"]


class InputError(ValueError):
    """A user's mistake: an argument, a file or a combination that cannot work. The command line prints it, exit code 2."""


class BudgetError(InputError):
    """Nothing fits what was allowed; the message says by how much, and what would fit."""


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
