"""Short passages first: training passages cut to a few sentences around the answer, more sentences as training goes on.

A reader that starts from random weights first has to find out that answers are copied, which it sees fastest where there
is little to read. A curriculum is a list of stages, ``num_sentences:until``, ``until`` a share of all rows drawn:
``"1:0.22,2:0.42"`` shows one sentence for the first 22 % of the rows, two up to 42 %, then whole passages. It works on any
passages: nothing needs to be short to begin with. Text without sentence ends is one sentence.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random

from jieyue.errors import InputError

__all__ = ["Curriculum", "crop", "split_sentences"]

_END = re.compile(r"[。！？]+[”’」』）\"]*|[.!?]+[\"')\]”’]*(?=\s|$)|\n")
Span = tuple[int, int]


def split_sentences(text: str) -> list[Span]:
    """Sentences as places ``(start, stop)`` that follow one another without gap and cover the text.

    >>> text = "It opens at 9.30 daily. 票价45元。Closed on Monday"
    >>> [text[start:stop] for start, stop in split_sentences(text)]
    ['It opens at 9.30 daily. ', '票价45元。', 'Closed on Monday']
    """
    sentences: list[Span] = []
    start = 0
    for match in _END.finditer(text):
        stop = match.end()
        while stop < len(text) and text[stop].isspace():
            stop += 1
        if stop > start and text[start:stop].strip():
            sentences.append((start, stop))
            start = stop
    if start < len(text):
        if text[start:].strip() or not sentences:
            sentences.append((start, len(text)))
        else:
            sentences[-1] = (sentences[-1][0], len(text))
    return sentences


def crop(text: str, spans: Sequence[Span], num_sentences: int, random: Random) -> tuple[str, tuple[Span, ...]]:
    """At most ``num_sentences`` neighbouring sentences of a passage, and the answer's places in them.

    The first of ``spans`` stays inside (more sentences are kept where it crosses a border); the other places stay if they
    happen to be inside. Which neighbours come along is drawn; without spans the whole choice is.
    """
    sentences = split_sentences(text)
    if len(sentences) <= num_sentences:
        return text, tuple(spans)
    low = high = random.randrange(len(sentences))
    if spans:
        begin, end = spans[0]
        inside = [i for i, (start, stop) in enumerate(sentences) if start < max(end, begin + 1) and stop > begin]
        low, high = inside[0], inside[-1]
    width = max(num_sentences, high - low + 1)
    start = random.randint(max(0, high - width + 1), min(low, len(sentences) - width))
    left, right = sentences[start][0], sentences[start + width - 1][1]
    kept = tuple((a - left, b - left) for a, b in spans if left <= a and b <= right)
    cut = text[left:right]
    return cut[: max([len(cut.rstrip()), *(b for _, b in kept)])], kept


@dataclass(frozen=True, slots=True)
class Curriculum:
    """Stages ``(num_sentences, until)``, both rising; after the last one passages are whole. No stages: always whole.

    >>> curriculum = Curriculum.parse("1:0.22,2:0.42")
    >>> [curriculum.num_sentences(progress) for progress in (0, 0.3, 0.42, 1)], str(curriculum)
    ([1, 2, None, None], '1:0.22,2:0.42')
    """

    stages: tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        counts, ends = [count for count, _ in self.stages], [until for _, until in self.stages]
        rising = all(a < b for values in (counts, ends) for a, b in pairwise(values))
        if not rising or any(count < 1 for count in counts) or not all(0 < until <= 1 for until in ends):
            raise InputError(
                f"curriculum={str(self)!r}",
                "stages that do not rise or are out of range",
                "num_sentences:until with num_sentences >= 1 and 0 < until <= 1, both rising, as in 1:0.22,2:0.42",
            )

    @classmethod
    def parse(cls, text: str) -> Curriculum:
        """From ``"1:0.22,2:0.42"``; the empty text and ``"none"`` have no stages."""
        stages = []
        for part in text.split(",") if text.strip() not in ("", "none") else []:
            match = re.fullmatch(r"\s*(\d+)\s*:\s*(\d*\.?\d+)\s*", part)
            if match is None:
                raise InputError(f"curriculum={text!r}", repr(part), "num_sentences:until, as in 1:0.22,2:0.42")
            stages.append((int(match[1]), float(match[2])))
        return cls(tuple(stages))

    def __str__(self) -> str:
        return ",".join(f"{count}:{until:g}" for count, until in self.stages) or "none"

    def num_sentences(self, progress: float) -> int | None:
        """How many sentences a passage may have when this share of the rows has been drawn; None = all it has."""
        return next((count for count, until in self.stages if progress < until), None)

    def draws(self, num_examples: int, num_rows: int, seed: int) -> Iterator[tuple[int, int | None]]:
        """``num_rows`` pairs (example, num_sentences): examples in shuffled rounds, each once a round, stages in turn.

        The number of sentences at row i is ``num_sentences(i / num_rows)``, so stages change at exact rows whatever the batch.
        """
        if num_examples < 1:
            raise InputError("draws(num_examples=...)", str(num_examples), "at least 1")
        random, order = Random(f"curriculum {seed}"), list(range(num_examples))
        for row in range(num_rows):
            if row % num_examples == 0:
                random.shuffle(order)
            yield order[row % num_examples], self.num_sentences(row / num_rows)
