"""Rows of plain text, and which of their tokens are hidden.

Of a row's tokens ``round(share · n)`` are chosen (whole words where asked for); of these 80 % become [MASK], 10 % another
token, 10 % stay. Which ones is drawn anew at every visit of a row, from (seed, row, visit) alone: the same on every
machine, whatever the micro-batch, the number of processes or an interruption.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy

from jieyue.data.windows import specials
from jieyue.tasks import Row

from .settings import MaskSettings

if TYPE_CHECKING:
    from jieyue.hf.types import Tokenizer

__all__ = ["encode_lines", "hide", "num_hidden"]

_CHUNK = 2048


def encode_lines(lines: Sequence[str], tokenizer: Tokenizer, settings: MaskSettings) -> tuple[list[Row], Counter[str]]:
    """Rows of neighbouring lines, as many as fit; a line longer than a row is cut into several.

    A row: ``input_ids`` [L] with [CLS] and [SEP]; ``words`` [L], the number of the word that each token is part of
    (-1: special); ``row``, its number, from which masks are drawn.
    """
    special, counts = specials(tokenizer), Counter[str]()
    room = settings.max_tokens - 2
    rows: list[Row] = []
    ids, words = list[int](), list[int]()

    def close() -> None:
        if ids:
            row = {
                "input_ids": numpy.array([special.cls, *ids, special.sep], dtype=numpy.int32),
                "words": numpy.array([-1, *words, -1], dtype=numpy.int32),
                "row": len(rows),
            }
            rows.append(row)
            counts["longest_row_tokens"] = max(counts["longest_row_tokens"], len(ids) + 2)
            counts["tokens"] += len(ids) + 2
            ids.clear()
            words.clear()

    for at in range(0, len(lines), _CHUNK):
        found = tokenizer(list(lines[at : at + _CHUNK]), add_special_tokens=False, verbose=False)
        for number, own in enumerate(found["input_ids"]):
            marks = found.word_ids(number) if tokenizer.is_fast else list(range(len(own)))
            if len(ids) + len(own) > room:
                close()
            counts["lines_cut"] += len(own) > room
            for first in range(0, len(own), room):
                after = words[-1] + 1 if words else 0
                ids += own[first : first + room]
                words += [after + (mark or 0) for mark in marks[first : first + room]]
                if len(ids) == room:
                    close()
    close()
    unknown = tokenizer.unk_token_id
    counts["unknown_tokens"] = sum(int((row["input_ids"] == unknown).sum()) for row in rows)
    counts["rows"] = len(rows)
    return rows, counts


def num_hidden(length: int, share: float) -> int:
    """How many tokens of a row of ``length`` (special ones included) are hidden."""
    return max(1, round(share * (length - 2)))


def hide(row: Row, tokenizer: Tokenizer, settings: MaskSettings) -> dict[str, numpy.ndarray]:
    """The row with some tokens hidden: ``input_ids`` [L], ``places`` [m] ascending, ``labels`` [m] what stood there.

    Drawn from ``settings.seed``, ``row["row"]`` and ``row["visit"]`` (0 where there is none).
    """
    special, ids, words = specials(tokenizer), row["input_ids"].copy(), row["words"]
    random = numpy.random.default_rng([settings.seed, row["row"], row.get("visit", 0)])
    wanted = num_hidden(len(ids), settings.share)
    if settings.whole_words:
        places = _whole_words(words, wanted, random)
    else:
        places = numpy.sort(random.permutation(numpy.flatnonzero(words >= 0))[:wanted])
    labels, fate = ids[places].copy(), random.random(len(places))
    ids[places[fate < 0.8]] = special.mask
    other = places[fate >= 0.9]
    plain = numpy.setdiff1d(numpy.arange(len(tokenizer)), tokenizer.all_special_ids)
    ids[other] = plain[random.integers(len(plain), size=len(other))]
    return {"input_ids": ids, "places": places, "labels": labels}


def _whole_words(words: numpy.ndarray, wanted: int, random: numpy.random.Generator) -> numpy.ndarray:
    """Places of whole words, drawn in turn while they fit; of the first one only what is wanted, where it is longer."""
    chosen = numpy.empty(0, dtype=int)
    for word in random.permutation(numpy.unique(words[words >= 0])):
        own = numpy.flatnonzero(words == word)
        if len(chosen) + len(own) <= wanted:
            chosen = numpy.concatenate([chosen, own])
        if len(chosen) == wanted:
            break
    return numpy.sort(chosen if len(chosen) else numpy.flatnonzero(words >= 0)[:wanted])
