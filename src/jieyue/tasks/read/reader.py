"""What a reader is, and what all readers share: the training rows of a question, windows of passages, answers with their place.

A row is ``before + window + after``: what stands around a window is the question's, so it is made once for all of them.
Windows that are read each for itself give their maximum, and passages vote: section "voting" of 7148.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy
from torch import Tensor, nn

from jieyue.data.batch import collate
from jieyue.data.qa_files import Question
from jieyue.data.windows import Candidate, Specials, Tokens, candidates, specials, tokenize, windows
from jieyue.decoding.constraints import Reading, SuffixOrder
from jieyue.decoding.slots import positions_of
from jieyue.decoding.vote import merge_windows, vote
from jieyue.errors import InputError
from jieyue.tasks import Row
from jieyue.tasks.batches import Done, answers_in_batches
from jieyue.text import normalize
from jieyue.training.objective import Objective

from .settings import ReadSettings

if TYPE_CHECKING:
    from jieyue.hf.types import Tokenizer

__all__ = [
    "Answer",
    "Orders",
    "Reader",
    "Window",
    "answer_by_vote",
    "encode_questions",
    "place",
    "silence",
    "target",
    "windows_of",
]

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


ReadBatch = Callable[[list[Window], dict[str, Tensor]], list[Reading]]


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
    special, found = specials(tokenizer), []
    for number, (_, own, passages) in enumerate(_tokenized(questions, tokenizer)):
        before, after = around(own, special, settings)
        for at, tokens in enumerate(passages):
            for first, stop in windows(len(tokens.ids), settings.window_tokens - 1, settings.overlap_tokens):
                found.append(Window(number, at, first, stop, tokens, before, after))
    longest, positions = max(map(len, found), default=0) + spare, positions_of(model)
    if positions is not None and longest > positions:
        raise InputError(
            "answer()", f"rows of {longest} tokens", f"at most {positions}", "use settings.fitted(positions)"
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


def _tokenized(questions: Sequence[Question], tokenizer: Tokenizer) -> list[tuple[Question, Tokens, list[Tokens]]]:
    """(question, its tokens, those of its passages) of each one."""
    asked = tokenize(tokenizer, [question.text for question in questions])
    passages = iter(tokenize(tokenizer, [passage.text for question in questions for passage in question.passages]))
    return [
        (question, own, [next(passages) for _ in question.passages])
        for question, own in zip(questions, asked, strict=True)
    ]


def encode_questions(
    questions: Sequence[Question], tokenizer: Tokenizer, settings: ReadSettings, reader: Reader
) -> tuple[list[Row], Counter[str]]:
    """Training rows and what became of everything that gave none.

    A row: ``input_ids`` [L], ``labels`` and what else the reader's objective asks for, and ``question``, ``passage``: where it
    comes from. Targets are the passage's own tokens that cover the answer. Questions whose answers are not known give no row.
    Deterministic in ``settings.seed``.
    """
    special, counts = specials(tokenizer), Counter[str]()
    every, unknown_id = _tokenized(questions, tokenizer), tokenizer.unk_token_id
    generator = numpy.random.default_rng(settings.seed)
    rows: list[Row] = []
    for number, (question, own, tokens) in enumerate(every):
        counts["questions_truncated"] += len(own.ids) > settings.question_tokens - 1
        if question.golds is None:
            counts["questions_without_golds"] += 1
            continue
        answered, empty = candidates(
            question, tokens, settings.window_tokens - 1, settings.overlap_tokens, settings.answer_slots - 1, counts
        )
        counts["questions_not_trained"] += not answered and not empty
        positives = len(answered) if question.golds else 1
        allowed = max(round(settings.negatives_per_positive * positives), int(not question.golds))
        if len(empty) > allowed:
            counts["windows_left_out"] += len(empty) - allowed
            empty = [empty[at] for at in sorted(generator.permutation(len(empty))[:allowed])]
        before, after = reader.around(own, special, settings)
        for candidate in (*answered, *empty):
            ids = tokens[candidate.passage].ids[candidate.first : candidate.stop]
            row = reader.row(before, ids, after, candidate, special, settings)
            rows.append(row | {"question": number, "passage": candidate.passage})
            if unknown_id is not None:
                counts["unknown_tokens"] += int((row["input_ids"] == unknown_id).sum())
            counts["tokens"] += len(row["input_ids"])
            counts["longest_row_tokens"] = max(counts["longest_row_tokens"], len(row["input_ids"]))
        counts["rows_answered"] += len(answered)
        counts["rows_abstaining"] += len(empty)
    counts["rows"] = len(rows)
    return rows, counts


def answer_by_vote(
    model: nn.Module,
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    settings: ReadSettings,
    around: Around,
    read: ReadBatch,
    batch_size: int = 32,
    done: Done | None = None,
) -> list[Answer]:
    """An answer to every question, in order; ``read(windows, inputs)`` reads ``batch_size`` windows of like length at once.

    ``done(so many, of so many)`` is called after every batch. The model is put into evaluation mode and back.
    """
    pad = specials(tokenizer).pad
    every = windows_of(model, questions, tokenizer, settings, around)

    def collated(some: list[Window]) -> dict[str, Tensor]:
        return collate([{"input_ids": one.row} for one in some], pad)

    found = answers_in_batches(model, every, len, collated, read, batch_size=batch_size, done=done)
    readings: list[list[tuple[Window, Reading]]] = [[] for _ in questions]
    for window, reading in zip(every, found, strict=True):
        readings[window.question].append((window, reading))
    return [decide(question, own, settings.temperature) for question, own in zip(questions, readings, strict=True)]


def decide(question: Question, found: Sequence[tuple[Window, Reading]], temperature: float) -> Answer:
    """Windows give their maximum, passages vote; all abstain: the least sure abstention stands for the question."""
    scores: dict[int, list[tuple[str, float]]] = {}
    best: dict[str, Answer] = {}
    silent: list[Reading] = []
    for window, reading in found:
        text = question.passages[window.passage].text
        start, end = place(window, reading, text)
        if start == end:
            silent.append(reading)
            continue
        key = normalize(text[start:end]).casefold()
        scores.setdefault(window.passage, []).append((key, reading.score))
        if key not in best or reading.score > best[key].score:
            best[key] = Answer(
                question.id, text[start:end], window.passage, start, end, score=reading.score, reading=reading
            )
    votes = vote(merge_windows(own) for _, own in sorted(scores.items()))
    if not votes:
        return silence(question, silent, temperature)
    winner = best[str(votes[0][0])]
    assert winner.reading is not None
    return replace(
        winner,
        vote=votes[0][1],
        confidence=winner.reading.confidence(temperature),
        rivals=tuple((best[str(key)].text, value) for key, value in votes[1:6]),
    )


def silence(question: Question, silent: Sequence[Reading], temperature: float) -> Answer:
    """No answer: the least sure abstention stands for the question."""
    confidence, reading = min(((one.confidence(temperature), one) for one in silent), key=lambda pair: pair[0])
    return Answer(question.id, "", score=reading.score, confidence=confidence, reading=reading)
