"""Which windows of a question teach what: the answer, to abstain, or nothing that could be said for sure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy

from .questions import Passage, Question
from .windows import Tokens, windows

__all__ = ["Candidate", "candidates"]


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
