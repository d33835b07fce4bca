"""Plain text as rows of one length: running text, cut where a row is full, never across a seam in the text.

Lines that stand together in the files stay together; rows are cut from each such run, and what is left at its end is counted and
left out, so that every row has the same length and its late positions see as much text as there is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy

from jieyue.data.batch import IGNORED
from jieyue.tasks import Row

from .settings import SparseSettings

if TYPE_CHECKING:
    from jieyue.hf.types import Tokenizer

__all__ = ["Line", "blocks_of", "encode_rows", "row_of", "spread"]

_CHARACTERS = 12  # of a block, for each token of a row: two rows of English or more
_BLOCKS = 20


@dataclass(frozen=True, slots=True)
class Line:
    """A line of text, its number among all lines, and the block of neighbouring lines that stays in one part of the data."""

    place: int
    block: int
    text: str


def blocks_of(lines: Sequence[str], row_tokens: int, places: Sequence[int] | None = None) -> list[Line]:
    """Lines in blocks long enough for some rows each; shorter blocks where there is little text, so that it can be parted.

    ``places``: the lines' numbers where they are some of more, None: from 0.
    """
    total = sum(map(len, lines))
    size = max(1, min(row_tokens * _CHARACTERS, total // _BLOCKS), total // 400)
    found, block, filled = list[Line](), 0, 0
    for place, text in zip(range(len(lines)) if places is None else places, lines, strict=True):
        if filled >= size:
            block, filled = block + 1, 0
        found.append(Line(place, block, text))
        filled += len(text)
    return found


def encode_rows(
    lines: Sequence[Line], tokenizer: Tokenizer, settings: SparseSettings
) -> tuple[list[Row], Counter[str]]:
    """Full rows, in order, and what was counted.

    A row: ``input_ids`` and ``labels`` [L]: the next token and nothing for the last (causal); the hidden tokens (masked); the
    row's own tokens, which only say that they count (encoder).
    """
    rows, counts = list[Row](), Counter[str]()
    room = settings.row_tokens - (0 if settings.kind == "causal" else 2)
    for run in _runs(lines):
        ids = numpy.array(tokenizer(run, add_special_tokens=False, verbose=False)["input_ids"], dtype=numpy.int32)
        counts["tokens_left_at_the_end_of_a_run"] += len(ids) % room
        for start in range(0, len(ids) - room + 1, room):
            rows.append(row_of(ids[start : start + room], tokenizer, settings, len(rows)))
    counts["tokens"] = len(rows) * settings.row_tokens
    counts["longest_row_tokens"] = settings.row_tokens if rows else 0
    return rows, counts


def spread(rows: Sequence[Row], tokens: int, row_tokens: int) -> list[Row]:
    """As many of the rows as ``tokens`` fill, at least one, evenly spaced; all of them where there are no more.

    >>> spread(range(10), 64, 16)
    [0, 2, 5, 7]
    """
    most = max(1, round(tokens / row_tokens))
    return [rows[place * len(rows) // most] for place in range(most)] if len(rows) > most else list(rows)


def row_of(ids: numpy.ndarray, tokenizer: Tokenizer, settings: SparseSettings, number: int) -> Row:
    """One row of these tokens of text; ``number``: what hidden tokens are drawn from."""
    if settings.kind == "causal":
        return {"input_ids": ids, "labels": numpy.append(ids[1:], IGNORED).astype(numpy.int32)}
    ids = numpy.concatenate([[tokenizer.cls_token_id], ids, [tokenizer.sep_token_id]]).astype(numpy.int32)
    if settings.kind == "encoder":
        return {"input_ids": ids, "labels": ids}
    generator = numpy.random.default_rng([settings.seed, number])
    hidden = numpy.zeros(len(ids), bool)
    inner = numpy.arange(1, len(ids) - 1)
    hidden[generator.choice(inner, max(1, round(settings.share * len(inner))), replace=False)] = True
    return {
        "input_ids": numpy.where(hidden, tokenizer.mask_token_id, ids).astype(numpy.int32),
        "labels": numpy.where(hidden, ids, IGNORED).astype(numpy.int32),
    }


def _runs(lines: Sequence[Line]) -> Iterator[str]:
    """The texts of neighbouring lines, joined."""
    run: list[str] = []
    last = None
    for line in lines:
        if last is not None and line.place != last + 1:
            yield "\n".join(run)
            run = []
        run.append(line.text)
        last = line.place
    if run:
        yield "\n".join(run)
