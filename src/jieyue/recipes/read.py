"""Reading comprehension by a masked language model, one forward pass a window: section "MLM reading" of 7148.

Input ``[CLS] [MASK]·A [SEP] question [SEP] passage [SEP]``; the masks' softmax spells the answer and its closing [SEP].
A window without the answer has the target [SEP]: to abstain is learned. Decoding takes n-grams of the window only;
windows give their maximum, passages vote. Beyond the article: all n-grams are compared, not one greedy path.

  data      SQuAD 1.1 and 2.0, CMRC 2018, DRCD, multi-passage (WebQA, SogouQA): data/readers.py
  command   jieyue train read, jieyue evaluate, jieyue read
  cost      encoding about 2 µs a token; reading one forward pass a window
  score     exact match, F1 and their mean; SQuAD's rule, CMRC 2018's where there is CJK text
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy
import torch
from torch import Tensor

from jieyue.data.batch import IGNORED, collate, token_batch
from jieyue.data.candidates import candidates
from jieyue.data.readers import Question, read_questions
from jieyue.data.windows import Specials, Tokens, specials, tokenize, windows
from jieyue.decoding.constraints import SEARCHES, Reading, SuffixOrder
from jieyue.decoding.slots import positions_of, slot_logits, slot_probabilities
from jieyue.decoding.vote import merge_windows, vote
from jieyue.errors import InputError, message
from jieyue.metrics.baselines import compare_baselines
from jieyue.metrics.calibration import Calibration, calibration_error, cross_fit
from jieyue.metrics.scores import exact_matches, score_answers
from jieyue.tally import Tally
from jieyue.text import normalize
from jieyue.training.objective import token_loss

from . import Recipe, Settings

__all__ = [
    "RECIPE",
    "Answer",
    "ReadSettings",
    "against_baselines",
    "answer",
    "calibrate",
    "encode",
    "objective",
    "score",
]


@dataclass(frozen=True, kw_only=True)
class ReadSettings(Settings):
    """Lengths in tokens, as in the article: every count includes its closing [SEP].

    A row has at most 2 + ``answer_slots`` + ``question_tokens`` + ``window_tokens`` tokens (354 by default). Windows
    share ``overlap_tokens``. ``negatives_per_positive``: windows without the answer kept for each one with it (an
    unanswerable question counts as one); ``seed`` chooses which. ``temperature``: of the confidence, fitted by ``calibrate``.
    ``search``: "best" compares all n-grams of the window, "greedy" takes one token after the other as the article does.
    """

    answer_slots: int = 32
    question_tokens: int = 64
    window_tokens: int = 256
    overlap_tokens: int = 64
    negatives_per_positive: float = 1.0
    seed: int = 0
    temperature: float = 1.0
    search: str = "best"

    def __post_init__(self) -> None:
        for name, least in (("answer_slots", 2), ("question_tokens", 2), ("window_tokens", 2), ("overlap_tokens", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name}={getattr(self, name)}: expected at least {least}")
        if self.overlap_tokens >= self.window_tokens - 1:
            raise InputError(
                f"overlap_tokens={self.overlap_tokens}: expected less than window_tokens - 1 = {self.window_tokens - 1}"
            )
        if self.search not in SEARCHES:
            raise InputError(message("search", repr(self.search), f"one of {', '.join(SEARCHES)}"))
        if self.negatives_per_positive < 0 or self.temperature <= 0:
            raise InputError(
                f"negatives_per_positive={self.negatives_per_positive}, temperature={self.temperature}: "
                "expected at least 0, and above 0"
            )

    @property
    def longest_row(self) -> int:
        return 2 + self.answer_slots + self.question_tokens + self.window_tokens

    def fitted(self, positions: int) -> ReadSettings:
        """These settings with a smaller window where the model has fewer ``positions`` than the longest row needs."""
        if self.longest_row <= positions:
            return self
        window = self.window_tokens - (self.longest_row - positions)
        if window < 2 * self.answer_slots:
            raise InputError(
                message(
                    f"window_tokens={self.window_tokens}",
                    f"a model of {positions} positions",
                    f"at least {2 + 3 * self.answer_slots + self.question_tokens}",
                    "lower answer_slots or question_tokens",
                )
            )
        return replace(self, window_tokens=window, overlap_tokens=min(self.overlap_tokens, window // 2))


def _question_part(question: Tokens, special: Specials, settings: ReadSettings) -> numpy.ndarray:
    """``[CLS] [MASK]·A [SEP] question [SEP]``: what stands before every window of the question's passages."""
    head = [special.cls, *[special.mask] * settings.answer_slots, special.sep]
    return numpy.concatenate([head, question.ids[: settings.question_tokens - 1], [special.sep]])


def encode(
    questions: Sequence[Question], tokenizer: Any, settings: ReadSettings
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Training rows and what became of everything that gave none.

    A row: ``input_ids`` [L], ``labels`` [A] (answer tokens, [SEP], then -100; they belong to the positions 1..A), and
    ``question``, ``passage``: where it comes from. Targets are the passage's own tokens that cover the answer. Questions
    whose answers are not known give no row. Deterministic in ``settings.seed``.
    """
    special, counts = specials(tokenizer), Counter[str]()
    asked = tokenize(tokenizer, [question.text for question in questions])
    texts = [passage.text for question in questions for passage in question.passages]
    passages = iter(tokenize(tokenizer, texts))
    unknown_id = getattr(tokenizer, "unk_token_id", None)
    generator = numpy.random.default_rng(settings.seed)
    rows: list[dict[str, Any]] = []
    for number, (question, own) in enumerate(zip(questions, asked, strict=True)):
        tokens = [next(passages) for _ in question.passages]
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
        head = _question_part(own, special, settings)
        for candidate in (*answered, *empty):
            ids = tokens[candidate.passage].ids[candidate.first : candidate.stop]
            labels = numpy.full(settings.answer_slots, IGNORED, dtype=numpy.int32)
            labels[: len(candidate.answer)] = candidate.answer
            labels[len(candidate.answer)] = special.sep
            input_ids = numpy.concatenate([head, ids, [special.sep]]).astype(numpy.int32)
            rows.append({"input_ids": input_ids, "labels": labels, "question": number, "passage": candidate.passage})
            if unknown_id is not None:
                counts["unknown_tokens"] += int((input_ids == unknown_id).sum())
            counts["tokens"] += len(input_ids)
            counts["longest_row_tokens"] = max(counts["longest_row_tokens"], len(input_ids))
        counts["rows_answered"] += len(answered)
        counts["rows_abstaining"] += len(empty)
    counts["rows"] = len(rows)
    return rows, counts


def objective(model: Any, batch: Mapping[str, Tensor]) -> Tally:
    """Sum of −log p over the answer tokens and their closing [SEP], and how many these are.

    ``batch``: ``input_ids``, ``attention_mask`` [B, L] and ``labels`` [B, A] of the slots at positions 1..A, where alone
    the vocabulary's logits are computed.
    """
    labels = batch["labels"]
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    logits = slot_logits(model, inputs, 1, labels.shape[1])
    return token_loss(logits.float() if logits.dtype.itemsize < 4 else logits, labels)


@dataclass(frozen=True)
class Answer:
    """What is answered to one question; ``text`` is empty when the reader abstains.

    ``text`` is ``passages[passage].text[start:end]``, letter for letter. ``vote``: Σs²/(Σs + 1) over the passages that
    give it; ``score``: the best window's mean probability; ``confidence``: that window's path probability at the fitted
    temperature (an abstention's: that of its least sure window). ``rivals``: other answers and their votes.
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
class _Window:
    question: int
    passage: int
    first: int
    stop: int
    tokens: Tokens
    head: numpy.ndarray

    def __len__(self) -> int:
        return len(self.head) + self.stop - self.first + 1


def _all_windows(questions: Sequence[Question], tokenizer: Any, settings: ReadSettings) -> list[_Window]:
    special = specials(tokenizer)
    asked = tokenize(tokenizer, [question.text for question in questions])
    texts = [passage.text for question in questions for passage in question.passages]
    passages = iter(tokenize(tokenizer, texts))
    found = []
    for number, (question, own) in enumerate(zip(questions, asked, strict=True)):
        head = _question_part(own, special, settings)
        for place in range(len(question.passages)):
            tokens = next(passages)
            for first, stop in windows(len(tokens.ids), settings.window_tokens - 1, settings.overlap_tokens):
                found.append(_Window(number, place, first, stop, tokens, head))
    return found


def _read_windows(
    model: Any,
    batch: Sequence[_Window],
    special: Specials,
    settings: ReadSettings,
    orders: dict[int, SuffixOrder],
) -> list[Reading]:
    """One forward pass; each row is decoded on its own."""
    rows = [
        {"input_ids": numpy.concatenate([one.head, one.tokens.ids[one.first : one.stop], [special.sep]])}
        for one in batch
    ]
    device = next(model.parameters()).device
    inputs = {name: value.to(device) for name, value in collate(rows, special.pad).items()}
    slots = settings.answer_slots
    probabilities = slot_probabilities(model, inputs, 1, slots)
    readings = []
    for one, own in zip(batch, probabilities, strict=True):
        order = orders.get(id(one.tokens))
        if order is None:
            order = orders[id(one.tokens)] = SuffixOrder(one.tokens.ids)
        at = own[:, len(one.head) : len(one) - 1]
        search = SEARCHES[settings.search]
        readings.append(search(order.window(one.first, one.stop), at, own[:, 1 + slots], one.first))
    return readings


def _place(window: _Window, reading: Reading, text: str) -> tuple[int, int]:
    """Characters of the passage that the reading covers; equal when it abstains."""
    if not reading.num_tokens:
        return 0, 0
    start = int(window.tokens.starts[reading.start])
    end = int(window.tokens.ends[reading.start + reading.num_tokens - 1])
    return (start, end) if text[start:end].strip() else (0, 0)


def _decide(question: Question, found: Sequence[tuple[_Window, Reading]], temperature: float) -> Answer:
    """Windows give their maximum, passages vote; all abstain: the least sure abstention stands for the question."""
    scores: dict[int, list[tuple[str, float]]] = {}
    best: dict[str, Answer] = {}
    silent: list[Reading] = []
    for window, reading in found:
        text = question.passages[window.passage].text
        start, end = _place(window, reading, text)
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
        confidence, reading = min(((one.confidence(temperature), one) for one in silent), key=lambda pair: pair[0])
        return Answer(question.id, "", score=reading.score, confidence=confidence, reading=reading)
    winner = best[str(votes[0][0])]
    assert winner.reading is not None
    return replace(
        winner,
        vote=votes[0][1],
        confidence=winner.reading.confidence(temperature),
        rivals=tuple((best[str(key)].text, value) for key, value in votes[1:6]),
    )


def answer(
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    settings: ReadSettings,
    *,
    batch_size: int = 32,
    progress: Callable[[int, int], None] | None = None,
) -> list[Answer]:
    """An answer to every question, in order; ``batch_size`` counts windows, sorted by length so that little is padding.

    ``progress(done, windows)`` is called after every batch. The model is put into evaluation mode and back.
    """
    special = specials(tokenizer)
    every = _all_windows(questions, tokenizer, settings)
    longest, positions = max(map(len, every), default=0), positions_of(model)
    if positions is not None and longest > positions:
        raise InputError(
            message("answer()", f"rows of {longest} tokens", f"at most {positions}", "use settings.fitted(positions)")
        )
    readings: list[list[tuple[_Window, Reading]]] = [[] for _ in questions]
    orders: dict[int, SuffixOrder] = {}
    by_length = sorted(range(len(every)), key=lambda at: -len(every[at]))
    found: dict[int, Reading] = {}
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for at in range(0, len(by_length), batch_size):
                chosen = by_length[at : at + batch_size]
                batch = [every[index] for index in chosen]
                found.update(zip(chosen, _read_windows(model, batch, special, settings, orders), strict=True))
                if progress is not None:
                    progress(at + len(batch), len(every))
    finally:
        model.train(was_training)
    for index, window in enumerate(every):
        readings[window.question].append((window, found[index]))
    return [_decide(question, own, settings.temperature) for question, own in zip(questions, readings, strict=True)]


def _known(answers: Sequence[Answer], questions: Sequence[Question]) -> tuple[list[Answer], list[bool]]:
    """The answers to questions whose golds are known, and whether each matches one exactly."""
    pairs = [(one, question) for one, question in zip(answers, questions, strict=True) if question.golds is not None]
    right = exact_matches([one.text for one, _ in pairs], [(question.text, question.golds) for _, question in pairs])
    return [one for one, _ in pairs], [bool(value) for value in right]


def score(
    answers: Sequence[Answer], questions: Sequence[Question], training: Sequence[Question] | None = None
) -> dict[str, Any]:
    """Facts of ``metrics.scores.score_answers``; with ``training``, its answers tell which golds were never seen there.

    ``calibration_error`` and ``calibration_bins`` say whether the confidences hold on these questions.
    """
    golds = None if training is None else [gold for question in training for gold in question.golds or ()]
    asked = [(question.text, question.golds) for question in questions]
    groups = [question.passages[0].text for question in questions]
    facts = score_answers([one.text for one in answers], asked, golds, groups)
    known, right = _known(answers, questions)
    if known:
        facts["calibration_error"], bins = calibration_error([one.confidence for one in known], right)
        facts["calibration_bins"] = [asdict(one) for one in bins]
    return facts


def calibrate(answers: Sequence[Answer], questions: Sequence[Question]) -> Calibration:
    """The temperature for ``ReadSettings``, fitted on held-out answers, and the calibration error before and after.

    The error after is measured on halves that the temperature was not fitted on.
    """
    known, right = _known(answers, questions)
    if not known:
        raise InputError("calibrate(answers, questions): found no question whose answers are known, expected some")
    readings = [one.reading for one in known if one.reading is not None]
    return cross_fit(lambda own, heat: [readings[at].confidence(heat) for at in own], right)


def against_baselines(
    answers: Sequence[Answer], questions: Sequence[Question], training: Sequence[Question]
) -> dict[str, Any]:
    """Facts of the three baselines on these questions, and the gain over the best: ``metrics.baselines``."""
    return compare_baselines(
        [one.text for one in answers],
        [(question.text, question.golds, [passage.text for passage in question.passages]) for question in questions],
        [question.golds for question in training if question.golds is not None],
    )


def example(settings: ReadSettings, rows: int, positions: int) -> dict[str, Tensor]:
    """A batch of ``rows`` rows of ``positions`` tokens; its values mean nothing."""
    return token_batch(rows, positions) | {"labels": torch.zeros(rows, settings.answer_slots, dtype=torch.long)}


RECIPE = Recipe(
    name="read",
    head="masked-lm",
    settings=ReadSettings,
    read=read_questions,
    encode=encode,
    objective=objective,
    answer=answer,
    score=score,
    example=example,
)
