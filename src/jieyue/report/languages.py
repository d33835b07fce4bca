"""Which language a text is in, as far as its script tells: what the ``lang`` attributes of a page need."""

from __future__ import annotations

import re

from jieyue.text import is_cjk

__all__ = ["language_of", "runs"]

_EAST = "[\u3000-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef\U00020000-\U0002fa1f]+"


def language_of(text: str) -> str:
    """The language tag that most of the text betrays by its script: "zh", "ja", "ko", or "" for anything else.

    >>> language_of("图书馆 opens at 9"), language_of("the word 节 means joint"), language_of("ひらがな")
    ('zh', '', 'ja')
    """
    words = re.findall(r"[^\W\d_]+", re.sub(_EAST, " ", text))
    characters = sum(map(is_cjk, text))
    return _script(text) if characters and characters >= len(words) else ""


def runs(text: str) -> list[tuple[str, str]]:
    """The text cut where its script changes, each piece with its tag ("" for anything but zh, ja and ko).

    >>> runs("the word 节约 means thrift")
    [('the word ', ''), ('节约', 'zh'), (' means thrift', '')]
    """
    pieces = [piece for piece in re.split(f"({_EAST})", text) if piece]
    return [(piece, _script(piece) if any(map(is_cjk, piece)) else "") for piece in pieces]


def _script(text: str) -> str:
    if re.search("[\u3040-\u30ff]", text):
        return "ja"
    return "ko" if re.search("[\uac00-\ud7af]", text) else "zh"
