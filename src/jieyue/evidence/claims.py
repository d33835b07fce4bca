"""What an experiment is, as values: a claim has cells, a cell gives numbers, all numbers together give a verdict.

    claim.cells(scale, seeds)  ->  cells          what is to be measured, each with its settings and its seed
    claim.measure(cell, place) ->  numbers        one training, one timing: JSON values, kept in a file
    claim.judge(results)       ->  Verdict        from intervals over the seeds (``judging.decide``), never from a single run

Each article's file declares ``CLAIMS: tuple[Claim, ...]``; ``articles.ARTICLES`` names the files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from jieyue.errors import InputError
from jieyue.json_values import Facts
from jieyue.report import Picture
from jieyue.report.amounts import Given

__all__ = [
    "FAILS",
    "HOLDS",
    "SCALES",
    "UNDECIDED",
    "UNTESTED",
    "Cell",
    "Claim",
    "Pairs",
    "Place",
    "Result",
    "Scale",
    "Untestable",
    "Verdict",
    "Word",
]

Scale = Literal["minutes", "hour", "full"]
SCALES: tuple[Scale, ...] = ("minutes", "hour", "full")
Word = Literal["holds", "fails", "not decided", "cannot be tested here"]
HOLDS: Word = "holds"
FAILS: Word = "fails"
UNDECIDED: Word = "not decided"
UNTESTED: Word = "cannot be tested here"


class Untestable(InputError):
    """Raised by ``measure``: this cell cannot be measured here; the text is the reason that the page gives.

    For a whole claim. Where only one row of its table is missing (another project's code that is not installed), ``measure``
    returns the reason among its numbers instead, ``{"peer": None, "why": "bert4torch is not installed"}``, and ``judge``
    writes a row with None ("not measured") and "cannot be tested here (why)"; the verdict is of the other rows.
    """


@dataclass(frozen=True)
class Cell:
    """One measurement: the claim's key, all that decides it besides the code, and the seed.

    ``settings``: JSON values. A setting named "data" is a path, or a list of them, relative to ``Place.data``: its files'
    content joins what decides the cell. The same cell is never measured twice (``running``).
    """

    claim: str
    settings: Facts
    seed: int


@dataclass(frozen=True)
class Place:
    """Where a cell runs. ``folder``: its own, kept when it is interrupted and removed when it is done; ``data``: the folder of
    larger data, None where none was given (``minutes`` needs none); ``threads``: torch's own count; ``weights``: the folder of
    the pretrained model, for a claim that is measured on one."""

    folder: Path
    data: Path | None
    threads: int
    weights: Path | None = None


@dataclass(frozen=True)
class Result:
    """A measured cell: its numbers, and the facts of the measurement that make it traceable."""

    cell: Cell
    numbers: Facts
    seconds: float
    command: str
    machine: Facts
    finished: str


Pairs: TypeAlias = Sequence[tuple[Cell, Facts]]  # the measured cells with their numbers


@dataclass(frozen=True)
class Verdict:
    """What was found at this scale. ``why``: one sentence that says which interval decided. ``columns`` and ``rows``: the table, as
    ``report.Section.table`` takes them, the article's numbers beside ours where there are any; cells may be ``Estimate``.
    ``lines``: a picture of it."""

    word: Word
    why: str
    columns: Sequence[str | tuple[str, str]] = ()
    rows: Sequence[Sequence[Given]] = ()
    lines: Picture | None = None


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One claim of one article, and the experiment that tests it.

    ``key``: lower-case words joined by hyphens, unique; ``article``: 1 … 8; ``sentence``: what is claimed;
    ``articles_number``: what the article measured ("0.774 (one run, BERT base)"; "none given").
    ``cells(scale, seeds)``: pure, quick, no reading of files; an empty sequence: not at this scale. ``seeds``: a tuple of at
    least two. ``measure``: see ``Untestable``. ``judge``: gets all results of this claim at one scale, at least two seeds.
    ``certain``: computed or proven, nothing is drawn at random, one cell is enough. ``version``: raise it when ``measure``
    changes what it measures; cells of other versions are measured anew.
    ``full``: the commands of the full scale, for a machine with a GPU, the hub and the full data.
    """

    key: str
    article: int
    sentence: str
    articles_number: str
    cells: Callable[[Scale, Sequence[int]], Sequence[Cell]]
    measure: Callable[[Cell, Place], Facts]
    judge: Callable[[Pairs], Verdict]
    certain: bool = False
    version: int = 1
    full: tuple[str, ...] = ()
