"""The language that the command line speaks: ``--lang en|zh`` anywhere on the line, else what LC_ALL, LC_MESSAGES or LANG say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextvars import ContextVar

from jieyue.errors import InputError
from jieyue.report.translation import LANGUAGES, catalogue

__all__ = ["FLAG", "choose", "said", "speak", "spoken"]

FLAG = "--lang"
_SPOKEN: ContextVar[str] = ContextVar("language", default="en")


def choose(arguments: Sequence[str], environment: Mapping[str, str]) -> tuple[str, list[str]]:
    """The language, and the arguments without the flag; what stands behind ``--`` is left alone.

    >>> choose(["read", "--lang", "zh", "--help"], {}), choose(["read"], {"LANG": "zh_CN.UTF-8"})[0]
    (('zh', ['read', '--help']), 'zh')
    """
    kept: list[str] = []
    language = next((environment[name] for name in ("LC_ALL", "LC_MESSAGES", "LANG") if environment.get(name)), "")
    language = "zh" if language.lower().startswith("zh") else "en"
    place = 0
    while place < len(arguments):
        one = arguments[place]
        name, given, value = one.partition("=")
        if one == "--":
            kept += arguments[place:]
            break
        if name == FLAG:
            place += not given
            language = value if given else next(iter(arguments[place : place + 1]), "")
            if language not in LANGUAGES:
                raise InputError(FLAG, repr(language), f"one of {', '.join(LANGUAGES)}")
        else:
            kept.append(one)
        place += 1
    return language, kept


def speak(language: str) -> None:
    """From here on ``said`` speaks this language."""
    _SPOKEN.set(language)


def spoken() -> str:
    """The language that is spoken."""
    return _SPOKEN.get()


def said(text: str) -> str:
    """The text in the language that is spoken, line by line where it has several."""
    words = catalogue(spoken())
    return words.find(text) or "\n".join(words.said(line) for line in text.split("\n"))
