"""Reading by writing: a prefix language model writes the answer token by token, all passages together. Section 2 of 7115.

Input ``[CLS] passage [SEP] question [SEP]`` (segment 0, bidirectional), then ``answer [SEP]`` (segment 1, causal). A window
without the answer has the target [SEP]. Of one question all windows write together:

    before the first token  windows whose likeliest token is [SEP] abstain and leave; none stays: no answer
    at every step           p_w(v) of each window → maximum over a passage's windows → vote c(v) = Σ p² / (Σ p + 1) over passages
                            the token with the highest c(v) among those that go on an n-gram of some window, and [SEP]

Keys and values are kept between steps. Letters: A answer slots, R windows that write, S tokens that may come next.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy
import torch
from torch import Tensor, nn

from jieyue.data.batch import token_batch
from jieyue.data.qa_files import Question
from jieyue.data.windows import Candidate, Specials, Tokens, specials
from jieyue.decoding.constraints import Interval, Reading
from jieyue.decoding.search import Step
from jieyue.decoding.slots import logits_at
from jieyue.decoding.vote import vote_probabilities
from jieyue.hf.steps import steps
from jieyue.tally import Tally
from jieyue.tasks.batches import Done, evaluating
from jieyue.training.objective import token_loss

from .reader import Answer, Orders, Reader, Window, place, silence, target, windows_of
from .settings import ReadSettings

if TYPE_CHECKING:
    from jieyue.hf.types import Tokenizer

__all__ = ["PREFIX", "answer", "objective"]


def around(question: Tokens, special: Specials, settings: ReadSettings) -> tuple[numpy.ndarray, numpy.ndarray]:
    """``[CLS]`` before the window, ``[SEP] question [SEP]`` after it."""
    asked = question.ids[: settings.question_tokens - 1]
    return numpy.array([special.cls]), numpy.concatenate([[special.sep], asked, [special.sep]])


def row(
    before: numpy.ndarray,
    ids: numpy.ndarray,
    after: numpy.ndarray,
    candidate: Candidate,
    special: Specials,
    settings: ReadSettings,
) -> dict[str, numpy.ndarray]:
    """``labels``: the answer's tokens and [SEP]; ``places``: the positions that foretell them; ``token_type_ids`` [L]."""
    wanted = target(candidate, special)
    source = len(before) + len(ids) + len(after)
    segments = numpy.zeros(source + len(wanted), dtype=numpy.int32)
    segments[source:] = 1
    return {
        "input_ids": numpy.concatenate([before, ids, after, wanted]).astype(numpy.int32),
        "labels": wanted,
        "token_type_ids": segments,
        "places": numpy.arange(source - 1, source - 1 + len(wanted), dtype=numpy.int32),
    }


def objective(model: nn.Module, batch: Mapping[str, Tensor]) -> Tally:
    """Sum of −log p over the answer tokens and their closing [SEP], and how many these are.

    ``batch``: ``input_ids``, ``attention_mask``, ``token_type_ids`` [B, L]; ``labels``, ``places`` [B, A], where alone the
    vocabulary's logits are computed.
    """
    inputs = {name: value for name, value in batch.items() if name not in ("labels", "places")}
    return token_loss(logits_at(model, {**inputs, "use_cache": False}, batch["places"]), batch["labels"])


def answer(
    model: nn.Module,
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    settings: ReadSettings,
    *,
    batch_size: int = 32,
    done: Done | None = None,
    make_step: Callable[[nn.Module], Step] = steps,
) -> list[Answer]:
    """An answer to every question, in order. Windows of one question stay together, so a batch has ``batch_size`` windows or
    those of a single question.

    ``make_step``: ``hf.steps.steps`` keeps keys and values, ``hf.steps.rereading`` reads everything anew at every step.
    """
    special = specials(tokenizer)
    every = windows_of(model, questions, tokenizer, settings, around, settings.answer_slots)
    own: list[list[Window]] = [[] for _ in questions]
    for window in every:
        own[window.question].append(window)
    orders, count = Orders(), 0
    found: dict[int, Answer] = {}
    with evaluating(model) as device:
        step = make_step(model)
        for chosen in _batches(own, batch_size):
            asked = [_Question(questions[number], own[number], orders) for number in chosen]
            _write(step, asked, special, settings.answer_slots, device)
            for number, one in zip(chosen, asked, strict=True):
                found[number] = one.answered(settings.temperature)
                count += len(one.windows)
            if done is not None:
                done(count, len(every))
    return [found[number] for number in range(len(questions))]


def _batches(own: Sequence[Sequence[Window]], batch_size: int) -> list[list[int]]:
    """Numbers of questions, those of like length together, until a batch would have more than ``batch_size`` windows."""
    batches: list[list[int]] = []
    held = 0
    for number in sorted(range(len(own)), key=lambda at: -max(map(len, own[at]))):
        if not batches or held + len(own[number]) > batch_size:
            batches.append([])
            held = 0
        batches[-1].append(number)
        held += len(own[number])
    return batches


@dataclass
class _Question:
    """One question while its answer is written: the windows that still write, and what was chosen so far."""

    question: Question
    windows: list[Window]
    orders: Orders
    writing: list[tuple[Window, Interval, list[float]]] = field(default_factory=list)
    silent: list[Reading] = field(default_factory=list)
    choices: list[numpy.ndarray] = field(default_factory=list)
    votes: list[float] = field(default_factory=list)
    num_tokens: int = 0

    def begin(self, probabilities: numpy.ndarray, sep: int) -> list[int]:
        """Who writes: numbers of the windows whose likeliest first token is not [SEP]; ``probabilities`` [windows, V]."""
        staying = []
        for number, (window, own) in enumerate(zip(self.windows, probabilities, strict=True)):
            allowed = self.orders[window].window(window.first, window.stop)
            if int(own.argmax()) != sep:
                staying.append(number)
                self.writing.append((window, allowed, []))
                continue
            rivals = own[numpy.unique(allowed.following())]
            weights = numpy.concatenate([own[sep : sep + 1], rivals]).astype(numpy.float32)
            self.silent.append(Reading(window.first, 0, float(own[sep]), (weights,)))
        return staying

    def choose(self, probabilities: numpy.ndarray, sep: int) -> int:
        """The next token, by vote; ``probabilities`` [R, V] of the windows that write. [SEP] wins ties, then the lowest id."""
        follow = numpy.unique(numpy.concatenate([allowed.following() for _, allowed, _ in self.writing]))
        tokens = numpy.concatenate([[sep], follow])
        passages = numpy.array([window.passage for window, _, _ in self.writing])
        first = numpy.flatnonzero(numpy.diff(passages, prepend=-1))
        voted = vote_probabilities(numpy.maximum.reduceat(probabilities[:, tokens], first, axis=0))
        best = int(voted.argmax())
        token = int(tokens[best])
        self.votes.append(float(voted[best]))
        self.choices.append(
            numpy.concatenate([voted[best : best + 1], numpy.delete(voted, best)]).astype(numpy.float32)
        )
        for at, (window, allowed, own) in enumerate(self.writing):
            own.append(float(probabilities[at, token]))
            if best:
                self.writing[at] = (window, allowed.narrow(token), own)
        self.num_tokens += best > 0
        return token

    def answered(self, temperature: float) -> Answer:
        """The tokens that were written, in the window that found them likeliest of those that have them; its first place."""
        holds = [one for one in self.writing if len(one[1].starts)] if self.num_tokens else []
        if holds:
            window, allowed, own = max(holds, key=lambda one: sum(one[2]))
            reading = Reading(int(allowed.starts.min()), self.num_tokens, sum(own) / len(own), tuple(self.choices))
            text = self.question.passages[window.passage].text
            start, end = place(window, reading, text)
            if start < end:
                return Answer(
                    self.question.id, text[start:end], window.passage, start, end, score=reading.score,
                    vote=sum(self.votes) / len(self.votes), confidence=reading.confidence(temperature), reading=reading,
                )  # fmt: skip
        silent = self.silent
        if self.writing:  # [SEP] or blanks were chosen against what a window wanted to say
            silent = [Reading(self.writing[0][0].first, 0, self.votes[0], tuple(self.choices))]
        return silence(self.question, silent, temperature)


def _write(step: Step, asked: Sequence[_Question], special: Specials, slots: int, device: torch.device) -> None:
    """One token a step for all questions of the batch; windows that abstain and questions that are done leave it."""
    rows = [window.row for one in asked for window in one.windows]
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), special.pad, dtype=torch.long)
    kept = torch.zeros_like(ids)
    for at, own in enumerate(rows):  # on the left, as what is written follows
        ids[at, width - len(own) :] = torch.from_numpy(own)
        kept[at, width - len(own) :] = 1
    logits, state = step(ids.to(device), kept.to(device))
    probabilities = _probabilities(logits)
    live: list[tuple[_Question, int]] = []  # and how many rows it has
    staying: list[int] = []
    first = 0
    for one in asked:
        own_rows = one.begin(probabilities[first : first + len(one.windows)], special.sep)
        staying += [first + at for at in own_rows]
        first += len(one.windows)
        live += [(one, len(own_rows))] if own_rows else []
    probabilities = probabilities[staying]
    for slot in range(slots):
        tokens: list[int] = []
        index: list[int] = []
        going: list[tuple[_Question, int]] = []
        first = 0
        for one, count in live:
            token = one.choose(probabilities[first : first + count], special.sep)
            if token != special.sep:
                going.append((one, count))
                tokens += [token] * count
                index += staying[first : first + count]
            first += count
        if not going or slot + 1 == slots:
            return
        live = going
        state.reorder(torch.tensor(index, device=device))
        staying = list(range(len(index)))
        logits, state = step(torch.tensor(tokens, device=device), state)
        probabilities = _probabilities(logits)


def _probabilities(logits: Tensor) -> numpy.ndarray:
    """[B, V] on the host."""
    wide = logits.double() if logits.dtype == torch.float64 else logits.float()
    found: numpy.ndarray = wide.softmax(-1).cpu().numpy()
    return found


def example(settings: ReadSettings, rows: int, positions: int) -> dict[str, Tensor]:
    """A batch of ``rows`` rows of ``positions`` tokens; its values mean nothing."""
    batch = token_batch(rows, positions)
    none = torch.zeros(rows, settings.answer_slots, dtype=torch.long)
    return batch | {"labels": none, "places": none.clone(), "token_type_ids": torch.zeros_like(batch["input_ids"])}


PREFIX = Reader(
    around=around,
    row=row,
    objective=objective,
    answer=answer,
    example=example,
    way="a token a step with a cache of keys and values",
)
