"""What a sparse attention saves in a model as it is: seconds of reading and of one more token, and the cache's bytes, by length.

Beside torch's SDPA and transformers' own cache, in turn. What it costs is told elsewhere (``layer_prices``).
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from jieyue.hf.reading_costs import ReadingCost, reading_cost
from jieyue.hf.types import Model
from jieyue.hf.use import use
from jieyue.listener import SILENT, ProgressListener
from jieyue.malloc import malloc_name
from jieyue.report import Report
from jieyue.report.amounts import Given

__all__ = ["SAVINGS", "Saving", "measure_savings", "savings_section"]

SAVINGS = "What it saves"
_TURNS, _LONG = 3, 4096  # turns of a row; a longer one is read once


@dataclass(frozen=True)
class Saving:
    """A row of ``tokens`` with every layer full, and under the chosen attention."""

    tokens: int
    full: ReadingCost
    sparse: ReadingCost


def measure_savings(
    model: Model,
    attention: str,
    lengths: Sequence[int],
    *,
    writes: bool,
    listener: ProgressListener = SILENT,
) -> list[Saving]:
    """A row of each length, read in turn with the model's own attention and under ``attention``; the model is left with its own.

    The medians of three turns, of one where a row is longer than 4,096 tokens; a short row is read first, which warms up.
    """
    ways: dict[str, str | None] = {"full": None, "sparse": attention}
    found = list[Saving]()
    with listener.progress("measuring what it saves") as update:
        for place, length in enumerate(lengths):
            each: dict[str, list[ReadingCost]] = {name: [] for name in ways}
            for turn in range(1 + (_TURNS if length <= _LONG else 1)):
                for name, own in ways.items():
                    use(model, attention=own)
                    cost = reading_cost(model, length if turn else min(length, 256), writes=writes)
                    if turn:
                        each[name].append(cost)
            found.append(Saving(length, *(_median(each[name]) for name in ways)))
            update(place + 1, len(lengths), {})
    use(model, attention=None)
    return found


def _median(costs: Sequence[ReadingCost]) -> ReadingCost:
    tokens = [one.token_seconds for one in costs if one.token_seconds is not None]
    seconds = statistics.median(one.seconds for one in costs)
    return ReadingCost(seconds, costs[0].cache_bytes, statistics.median(tokens) if tokens else None)


def savings_section(report: Report, savings: Sequence[Saving], asked: Sequence[int], positions: int) -> None:
    """A table each for reading, one more token and the cache; a note on the lengths that the model has no positions for."""
    if left := [length for length in asked if length > positions]:
        told = ", ".join(f"{length:,}" for length in left)
        report.section(SAVINGS).note(
            f"Not measured at {told} tokens: the model has {positions:,} positions. --positions gives it more."
        )
    if not savings:
        return
    section = report.section(SAVINGS)
    turns = f"Median of {_TURNS} turns, one where a row is longer than {_LONG:,} tokens"
    how = f"{turns}; under {malloc_name()}, on this machine as it was."
    seconds: list[list[Given]] = [
        [one.tokens, one.full.seconds, one.sparse.seconds, one.full.seconds / one.sparse.seconds] for one in savings
    ]
    columns: list[str | tuple[str, str]] = ["tokens", ("SDPA", "seconds"), ("chosen", "seconds"), "times faster"]
    section.table(columns, seconds, title="Reading in one pass", note=how)
    tokens: list[list[Given]] = [
        [
            one.tokens,
            one.full.token_seconds,
            one.sparse.token_seconds,
            one.full.token_seconds / one.sparse.token_seconds,
        ]
        for one in savings
        if one.full.token_seconds is not None and one.sparse.token_seconds is not None
    ]
    if tokens:
        columns = ["tokens before", ("SDPA", "seconds"), ("chosen", "seconds"), "times faster"]
        section.table(columns, tokens, title="One more token")
    held: list[list[Given]] = [
        [one.tokens, one.full.cache_bytes, one.sparse.cache_bytes, one.sparse.cache_bytes / one.full.cache_bytes]
        for one in savings
        if one.full.cache_bytes and one.sparse.cache_bytes is not None
    ]
    if held:
        columns = ["tokens", ("every layer full", "bytes"), ("chosen", "bytes"), ("share", "share")]
        note = "Held right after reading; every layer full: transformers' own cache."
        section.table(columns, held, title="Cache", note=note)
        last = savings[-1]
        assert last.full.cache_bytes is not None and last.sparse.cache_bytes is not None
        share = last.sparse.cache_bytes / last.full.cache_bytes
        section.fact(f"cache at {last.tokens:,} tokens", share, "share", how="of transformers' own", key=True)
