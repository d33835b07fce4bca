"""Tokens with their places in the text, overlapping windows over them, and which windows of a question teach what.

The split of a long passage: windows of ``capacity`` tokens, each sharing ``overlap`` with the one before; the merge is
the reader's (maximum within the passage). One window = no windows. A window teaches the answer, to abstain, or nothing that could
be said for sure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy

from jieyue.errors import InputError

from .questions import Passage, Question
from .tokenizer import Tokenizer

__all__ = ["Candidate", "Specials", "Tokens", "candidates", "specials", "tokenize", "windows"]

_CHUNK = 2048  # texts per call of the tokenizer: its offset lists are large and short-lived


@dataclass(frozen=True, slots=True)
class Tokens:
    """``ids`` [n], and token t covers the characters ``starts[t]:ends[t]`` of the text, blanks at its ends not counted."""

    ids: numpy.ndarray
    starts: numpy.ndarray
    ends: numpy.ndarray

    def covering(self, start: int, end: int) -> tuple[int, int]:
        """First and one past the last token that share a character with ``start:end``; equal when there is none."""
        first = int(numpy.searchsorted(self.ends, start, "right"))
        return first, max(first, int(numpy.searchsorted(self.starts, end, "left")))


@dataclass(frozen=True, slots=True)
class Specials:
    """Ids of the tokenizer's special tokens, whatever they are called ([CLS] or <s>)."""

    cls: int
    sep: int
    mask: int
    pad: int


def specials(tokenizer: Tokenizer) -> Specials:
    """The four ids that a masked reader needs. ``InputError`` names the ones that the tokenizer lacks."""
    ids = {name: getattr(tokenizer, f"{name}_token_id", None) for name in ("cls", "sep", "mask", "pad")}
    missing = [f"{name}_token" for name, value in ids.items() if value is None]
    if missing:
        raise InputError(
            "tokenizer",
            f"{type(tokenizer).__name__} without {', '.join(missing)}",
            "cls, sep, mask and pad tokens",
            "use the tokenizer of a masked language model",
        )
    return Specials(**{name: int(value) for name, value in ids.items() if value is not None})


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return start, end


def tokenize(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Tokens]:
    """Every text's tokens without special ones; marks like ``[SEP]`` that stand in a text stay ordinary text.

    Needs a fast tokenizer, the kind that knows the place of each token in the text; ``InputError`` otherwise.
    Cost: about a microsecond and 12 bytes a token; a text that occurs twice is tokenized once.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(
            "tokenizer",
            f"{type(tokenizer).__name__}, which does not tell where its tokens stand in the text",
            "a fast tokenizer (tokenizer.json)",
            "load it with AutoTokenizer, or save the model's tokenizer as PreTrainedTokenizerFast",
        )
    distinct = list(dict.fromkeys(texts))
    found: dict[str, Tokens] = {}
    for first in range(0, len(distinct), _CHUNK):
        chunk = distinct[first : first + _CHUNK]
        encoded = tokenizer(
            chunk,
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            return_offsets_mapping=True,
            split_special_tokens=True,
            verbose=False,
        )
        for text, ids, offsets in zip(chunk, encoded["input_ids"], encoded["offset_mapping"], strict=True):
            places = numpy.array(offsets, dtype=numpy.int32).reshape(-1, 2)
            if len(places):
                codes = numpy.frombuffer((text + " ").encode("utf-32-le"), dtype=numpy.uint32)
                edges = (codes[places[:, 0]] <= 32) | (codes[places[:, 1] - 1] <= 32)
                for t in numpy.flatnonzero(edges):  # byte-level vocabularies keep the space before a word as part of it
                    places[t] = _trimmed(text, *offsets[t])
            found[text] = Tokens(
                numpy.array(ids, dtype=numpy.int32),
                numpy.ascontiguousarray(places[:, 0]),
                numpy.ascontiguousarray(places[:, 1]),
            )
    return [found[text] for text in texts]


def windows(num_tokens: int, capacity: int, overlap: int) -> list[tuple[int, int]]:
    """Half-open token ranges of at most ``capacity`` that cover ``0:num_tokens``, neighbours sharing ``overlap`` tokens.

    Law: every run of at most ``overlap + 1`` tokens lies whole in some window. A text that fits gives one window.

    >>> windows(10, 4, 1), windows(3, 4, 1), windows(0, 4, 1)
    ([(0, 4), (3, 7), (6, 10)], [(0, 3)], [(0, 0)])
    """
    if not 0 <= overlap < capacity:
        raise InputError(f"overlap={overlap}: expected at least 0 and less than the window's {capacity} tokens")
    found = [(0, min(capacity, num_tokens))]
    while found[-1][1] < num_tokens:
        start = found[-1][0] + capacity - overlap
        found.append((start, min(start + capacity, num_tokens)))
    return found


@dataclass(frozen=True, slots=True)
class Candidate:
    """Tokens ``first:stop`` of a passage; ``answer``: the tokens to give, which begin at ``start``; none = abstain."""

    passage: int
    first: int
    stop: int
    answer: numpy.ndarray
    start: int = -1


_NOTHING = numpy.empty(0, dtype=numpy.int32)


def _target(passage: Passage, tokens: Tokens, longest_answer: int, counts: Counter[str]) -> tuple[int, int] | None:
    """Token range of the first answer that is no longer than allowed; what stands in the way is counted."""
    for start, end in passage.spans:
        first, stop = tokens.covering(start, end)
        counts["longest_answer_tokens"] = max(counts["longest_answer_tokens"], stop - first)
        if stop == first or stop - first > longest_answer:
            counts["answers_over_long"] += 1
            continue
        found = passage.text[tokens.starts[first] : tokens.ends[stop - 1]]
        counts["answers_off_token_borders"] += found != passage.text[start:end].strip()
        return first, stop
    return None


def _holds(ids: numpy.ndarray, run: numpy.ndarray) -> bool:
    """True if ``run`` stands somewhere in ``ids``."""
    starts = numpy.flatnonzero(ids[: max(0, len(ids) - len(run) + 1)] == run[0])
    return any(numpy.array_equal(ids[start : start + len(run)], run) for start in starts)


def candidates(
    question: Question,
    tokens: Sequence[Tokens],
    capacity: int,
    overlap: int,
    longest_answer: int,
    counts: Counter[str],
) -> tuple[list[Candidate], list[Candidate]]:
    """(windows that hold the answer whole, windows without it), over all passages of one question.

    A window is neither, and counted as ``windows_unclear``, when the same words stand in it in another place than the
    answer, or when the answer is known but cannot be a target (not in the text, or over-long). Counted besides: windows,
    passages_windowed, answers_over_long, answers_off_token_borders, answers_cut_by_windows, longest_answer_tokens.
    """
    answered: list[Candidate] = []
    empty: list[Candidate] = []
    for place, (passage, own) in enumerate(zip(question.passages, tokens, strict=True)):
        ranges = windows(len(own.ids), capacity, overlap)
        counts["windows"] += len(ranges)
        counts["passages_windowed"] += len(ranges) > 1
        target = _target(passage, own, longest_answer, counts)
        if target is None and (passage.spans or passage.unplaced):
            counts["windows_unclear"] += len(ranges)
            continue
        if target is None:
            empty += [Candidate(place, first, stop, _NOTHING) for first, stop in ranges]
            continue
        answer = own.ids[target[0] : target[1]]
        whole = [first <= target[0] and target[1] <= stop for first, stop in ranges]
        counts["answers_cut_by_windows"] += not any(whole)
        for (first, stop), inside in zip(ranges, whole, strict=True):
            if inside:
                answered.append(Candidate(place, first, stop, answer, target[0]))
            elif _holds(own.ids[first:stop], answer):
                counts["windows_unclear"] += 1
            else:
                empty.append(Candidate(place, first, stop, _NOTHING))
    return answered, empty
