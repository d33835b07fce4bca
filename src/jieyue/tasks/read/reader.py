"""What a reader is, and what all readers share: windows of passages, answers with their place, the rows of a question.

A row is ``before + window + after``: what stands around a window is the question's, so it is made once for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy
from torch import Tensor, nn

from jieyue.data.candidates import Candidate
from jieyue.data.qa_files import Question
from jieyue.data.windows import Specials, Tokens, specials, tokenize, windows
from jieyue.decoding.constraints import Reading, SuffixOrder
from jieyue.decoding.slots import positions_of
from jieyue.errors import InputError, message
from jieyue.training.objective import Objective

from .settings import ReadSettings

if TYPE_CHECKING:
    from jieyue.hf.types import Tokenizer

__all__ = ["Answer", "Around", "Orders", "Reader", "Window", "place", "target", "windows_of"]

Around = Callable[[Tokens, Specials, ReadSettings], tuple[numpy.ndarray, numpy.ndarray]]


@dataclass(frozen=True, kw_only=True)
class Reader:
    """One way to read.

    ``around(question, special, settings)``: the tokens before and after a window. ``row(before, ids, after, candidate,
    special, settings)``: a training row, ``input_ids``, ``labels`` and what else its ``objective(model, batch)`` asks for.
    ``answer(model, tokenizer, questions, settings, *, batch_size, done)``: the answers, in order.
    ``example(settings, rows, positions)``: a batch without meaning for the planner. ``way``: how it answers, in words.
    """

    around: Around
    row: Callable[..., dict[str, numpy.ndarray]]
    objective: Objective
    answer: Callable[..., list[Answer]]
    example: Callable[[ReadSettings, int, int], dict[str, Tensor]]
    way: str


@dataclass(frozen=True)
class Answer:
    """What is answered to one question; ``text`` is empty when the reader abstains.

    ``text`` is ``passages[passage].text[start:end]``, letter for letter. ``vote``: Σs²/(Σs + 1) over the passages that
    give it (of the prefix reader: its mean over the tokens); ``score``: the best window's mean probability; ``confidence``: that
    window's path probability at the fitted temperature (an abstention's: that of its least sure window). ``rivals``: other
    answers and their votes.
    """

    id: str
    text: str
    passage: int = -1
    start: int = 0
    end: int = 0
    score: float = 0.0
    vote: float = 0.0
    confidence: float = 0.0
    rivals: tuple[tuple[str, float], ...] = ()
    reading: Reading | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Window:
    """Tokens ``first:stop`` of a passage and what stands around them."""

    question: int
    passage: int
    first: int
    stop: int
    tokens: Tokens
    before: numpy.ndarray
    after: numpy.ndarray

    def __len__(self) -> int:
        return len(self.before) + self.stop - self.first + len(self.after)

    @property
    def row(self) -> numpy.ndarray:
        """The whole row's tokens."""
        return numpy.concatenate([self.before, self.tokens.ids[self.first : self.stop], self.after])

    @property
    def inside(self) -> slice:
        """Where the window's tokens stand in the row."""
        return slice(len(self.before), len(self.before) + self.stop - self.first)


class Orders:
    """The suffix order of each passage, made once however many windows it has."""

    def __init__(self) -> None:
        self._made: dict[int, SuffixOrder] = {}

    def __getitem__(self, window: Window) -> SuffixOrder:
        key = id(window.tokens)
        if key not in self._made:
            self._made[key] = SuffixOrder(window.tokens.ids)
        return self._made[key]


def windows_of(
    model: nn.Module,
    questions: Sequence[Question],
    tokenizer: Tokenizer,
    settings: ReadSettings,
    around: Around,
    spare: int = 0,
) -> list[Window]:
    """The windows of all passages, in order; ``InputError`` where one, with ``spare`` tokens to come, is too long for the model."""
    special = specials(tokenizer)
    asked = tokenize(tokenizer, [question.text for question in questions])
    texts = [passage.text for question in questions for passage in question.passages]
    passages = iter(tokenize(tokenizer, texts))
    found = []
    for number, (question, own) in enumerate(zip(questions, asked, strict=True)):
        before, after = around(own, special, settings)
        for at in range(len(question.passages)):
            tokens = next(passages)
            for first, stop in windows(len(tokens.ids), settings.window_tokens - 1, settings.overlap_tokens):
                found.append(Window(number, at, first, stop, tokens, before, after))
    longest, positions = max(map(len, found), default=0) + spare, positions_of(model)
    if positions is not None and longest > positions:
        raise InputError(
            message("answer()", f"rows of {longest} tokens", f"at most {positions}", "use settings.fitted(positions)")
        )
    return found


def place(window: Window, reading: Reading, text: str) -> tuple[int, int]:
    """Characters of the passage that the reading covers; equal when it abstains."""
    if not reading.num_tokens:
        return 0, 0
    start = int(window.tokens.starts[reading.start])
    end = int(window.tokens.ends[reading.start + reading.num_tokens - 1])
    return (start, end) if text[start:end].strip() else (0, 0)


def target(candidate: Candidate, special: Specials) -> numpy.ndarray:
    """The answer's tokens and the closing [SEP]; a window without the answer has [SEP] alone."""
    return numpy.append(candidate.answer, special.sep).astype(numpy.int32)
