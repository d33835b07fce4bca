"""Masked-LM training on plain text: some tokens of a row are hidden, the model says what stood there.

Of a row's tokens ``round(share · n)`` are chosen (whole words where asked for); of these 80 % become [MASK], 10 % another
token, 10 % stay. Which ones is drawn anew at every visit of a row, from (seed, row, visit) alone: the same on every
machine, whatever the micro-batch, the number of processes or an interruption.

  data      plain text, a paragraph a line: data/plain.py; by default the passages that ship
  command   jieyue train mlm, jieyue evaluate
  cost      the vocabulary's logits are computed at the chosen tokens alone, 15 % of them
  score     −log p and accuracy at hidden tokens (nats; 95 % bootstrap over rows); pseudo-perplexity, each token hidden alone
  source    Devlin et al. 2019; Salazar et al. 2020 for the pseudo-perplexity
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy
import torch
from torch import Tensor

from jieyue.data.batch import IGNORED, collate, token_batch
from jieyue.data.findings import Findings
from jieyue.data.plain import read_lines
from jieyue.data.windows import specials
from jieyue.decoding.slots import logits_at
from jieyue.errors import InputError
from jieyue.metrics.intervals import bootstrap
from jieyue.tally import Tally
from jieyue.training.objective import token_loss

from . import Recipe, Settings

__all__ = [
    "RECIPE",
    "Guess",
    "MaskSettings",
    "answer",
    "encode",
    "hide",
    "num_hidden",
    "objective",
    "pseudo",
    "read",
    "score",
]

_CHUNK = 2048


@dataclass(frozen=True, kw_only=True)
class MaskSettings(Settings):
    """``max_tokens``: of a row, [CLS] and [SEP] included. ``share``: of a row's tokens, hidden at each visit.

    ``whole_words``: all pieces of a chosen word are hidden together. ``pseudo_rows``: held-out rows whose pseudo-perplexity
    is computed (as many forward passes as they have tokens).
    """

    max_tokens: int = 128
    share: float = 0.15
    whole_words: bool = False
    pseudo_rows: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_tokens < 8 or not 0 < self.share < 0.9 or self.pseudo_rows < 0:
            raise InputError(
                f"max_tokens={self.max_tokens}, share={self.share}, pseudo_rows={self.pseudo_rows}: expected at least 8, "
                "a share between 0 and 0.9, and at least 0"
            )

    def fitted(self, positions: int) -> Self:
        """These settings with shorter rows where the model has fewer ``positions``."""
        return replace(self, max_tokens=min(self.max_tokens, positions))


def read(paths: str | Path | Sequence[str | Path], *, skip_bad: bool = False) -> tuple[list[str], Findings]:
    """Lines of the files and what was found: ``data.plain.read_lines``."""
    return read_lines(paths, skip_bad=skip_bad)


def encode(lines: Sequence[str], tokenizer: Any, settings: MaskSettings) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Rows of neighbouring lines, as many as fit; a line longer than a row is cut into several.

    A row: ``input_ids`` [L] with [CLS] and [SEP]; ``words`` [L], the number of the word that each token is part of
    (-1: special); ``row``, its number, from which masks are drawn.
    """
    special, counts = specials(tokenizer), Counter[str]()
    room = settings.max_tokens - 2
    rows: list[dict[str, Any]] = []
    ids, words = list[int](), list[int]()

    def close() -> None:
        if ids:
            row = {
                "input_ids": numpy.array([special.cls, *ids, special.sep], dtype=numpy.int32),
                "words": numpy.array([-1, *words, -1], dtype=numpy.int32),
                "row": len(rows),
            }
            rows.append(row)
            counts["longest_row_tokens"] = max(counts["longest_row_tokens"], len(ids) + 2)
            counts["tokens"] += len(ids) + 2
            ids.clear()
            words.clear()

    for at in range(0, len(lines), _CHUNK):
        found = tokenizer(list(lines[at : at + _CHUNK]), add_special_tokens=False, verbose=False)
        for number, own in enumerate(found["input_ids"]):
            marks = found.word_ids(number) if tokenizer.is_fast else list(range(len(own)))
            if len(ids) + len(own) > room:
                close()
            counts["lines_cut"] += len(own) > room
            for first in range(0, len(own), room):
                after = words[-1] + 1 if words else 0
                ids += own[first : first + room]
                words += [after + (mark or 0) for mark in marks[first : first + room]]
                if len(ids) == room:
                    close()
    close()
    unknown = getattr(tokenizer, "unk_token_id", None)
    counts["unknown_tokens"] = sum(int((row["input_ids"] == unknown).sum()) for row in rows)
    counts["rows"] = len(rows)
    return rows, counts


def num_hidden(length: int, share: float) -> int:
    """How many tokens of a row of ``length`` (special ones included) are hidden."""
    return max(1, round(share * (length - 2)))


def hide(row: Mapping[str, Any], tokenizer: Any, settings: MaskSettings) -> dict[str, numpy.ndarray]:
    """The row with some tokens hidden: ``input_ids`` [L], ``places`` [m] ascending, ``labels`` [m] what stood there.

    Drawn from ``settings.seed``, ``row["row"]`` and ``row["visit"]`` (0 where there is none).
    """
    special, ids, words = specials(tokenizer), row["input_ids"].copy(), row["words"]
    random = numpy.random.default_rng([settings.seed, row["row"], row.get("visit", 0)])
    wanted = num_hidden(len(ids), settings.share)
    if settings.whole_words:
        places = _whole_words(words, wanted, random)
    else:
        places = numpy.sort(random.permutation(numpy.flatnonzero(words >= 0))[:wanted])
    labels, fate = ids[places].copy(), random.random(len(places))
    ids[places[fate < 0.8]] = special.mask
    other = places[fate >= 0.9]
    plain = numpy.setdiff1d(numpy.arange(len(tokenizer)), tokenizer.all_special_ids)
    ids[other] = plain[random.integers(len(plain), size=len(other))]
    return {"input_ids": ids, "places": places, "labels": labels}


def _whole_words(words: numpy.ndarray, wanted: int, random: numpy.random.Generator) -> numpy.ndarray:
    """Places of whole words, drawn in turn while they fit; of the first one only what is wanted, where it is longer."""
    chosen = numpy.empty(0, dtype=int)
    for word in random.permutation(numpy.unique(words[words >= 0])):
        own = numpy.flatnonzero(words == word)
        if len(chosen) + len(own) <= wanted:
            chosen = numpy.concatenate([chosen, own])
        if len(chosen) == wanted:
            break
    return numpy.sort(chosen if len(chosen) else numpy.flatnonzero(words >= 0)[:wanted])


def masked(rows: Sequence[Mapping[str, Any]], tokenizer: Any, settings: MaskSettings) -> dict[str, Tensor]:
    """Rows as tensors: ``input_ids``, ``attention_mask`` [B, L], ``places``, ``labels`` [B, M], -100 beyond a row's own."""
    return collate([hide(row, tokenizer, settings) for row in rows], tokenizer.pad_token_id)


def objective(model: Any, batch: Mapping[str, Tensor]) -> Tally:
    """Sum of −log p of the hidden tokens, and how many these are."""
    logits = _logits(model, batch)
    return token_loss(logits.float() if logits.dtype.itemsize < 4 else logits, batch["labels"])


def _logits(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    inputs = {name: value for name, value in batch.items() if name not in ("labels", "places")}
    return logits_at(model, inputs, batch["places"])


@dataclass(frozen=True, slots=True)
class Guess:
    """What a model makes of one row's hidden tokens: summed −log p, how many were guessed right, how many there were."""

    loss: float
    right: int
    count: int


def answer(
    model: Any,
    tokenizer: Any,
    lines: Sequence[str],
    settings: MaskSettings,
    *,
    batch_size: int = 32,
    progress: Callable[[int, int], None] | None = None,
) -> list[Guess]:
    """A guess for every row of these lines, each with the tokens hidden that its first visit would hide."""
    rows, _ = encode(lines, tokenizer, settings)
    return _guesses(model, [hide(row, tokenizer, settings) for row in rows], tokenizer, batch_size, progress)


def pseudo(
    model: Any, tokenizer: Any, lines: Sequence[str], settings: MaskSettings, *, batch_size: int = 32
) -> tuple[float, int]:
    """(pseudo-perplexity, tokens) of ``settings.pseudo_rows`` rows spread over the lines: every token hidden alone.

    exp(−(1/n) Σ_t log p(x_t | all others)); special tokens are not asked for.
    """
    rows, _ = encode(lines, tokenizer, settings)
    chosen = rows[:: max(1, len(rows) // max(1, settings.pseudo_rows))][: settings.pseudo_rows]
    hidden = []
    for row in chosen:
        for place in numpy.flatnonzero(row["words"] >= 0):
            ids = row["input_ids"].copy()
            ids[place] = tokenizer.mask_token_id
            hidden.append(
                {"input_ids": ids, "places": numpy.array([place]), "labels": row["input_ids"][place : place + 1]}
            )
    found = _guesses(model, hidden, tokenizer, batch_size, None)
    count = sum(one.count for one in found)
    return math.exp(sum(one.loss for one in found) / max(count, 1)), count


def _guesses(
    model: Any,
    hidden: Sequence[Mapping[str, numpy.ndarray]],
    tokenizer: Any,
    batch_size: int,
    progress: Callable[[int, int], None] | None,
) -> list[Guess]:
    order = sorted(range(len(hidden)), key=lambda at: -len(hidden[at]["input_ids"]))
    device, was_training = next(model.parameters()).device, model.training
    found: dict[int, Guess] = {}
    model.eval()
    try:
        with torch.inference_mode():
            for at in range(0, len(order), batch_size):
                chosen = order[at : at + batch_size]
                batch = collate([hidden[number] for number in chosen], tokenizer.pad_token_id)
                batch = {name: value.to(device) for name, value in batch.items()}
                logits, labels = _logits(model, batch).float(), batch["labels"]
                counted = labels != IGNORED
                loss = -logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0] * counted
                right = (logits.argmax(-1) == labels) & counted
                for number, *own in zip(chosen, loss.sum(1), right.sum(1), counted.sum(1), strict=True):
                    found[number] = Guess(float(own[0]), int(own[1]), int(own[2]))
                if progress is not None:
                    progress(at + len(chosen), len(order))
    finally:
        model.train(was_training)
    return [found[number] for number in range(len(hidden))]


def score(answers: Sequence[Guess]) -> dict[str, Any]:
    """``loss`` (nats a hidden token), ``perplexity`` = exp of it, ``accuracy``, ``tokens``; intervals over rows."""
    losses = [one.loss for one in answers]
    right, counts = [float(one.right) for one in answers], [float(one.count) for one in answers]
    total = sum(counts)
    facts: dict[str, Any] = {"tokens": int(total), "loss": sum(losses) / total, "accuracy": sum(right) / total}
    facts["perplexity"] = math.exp(facts["loss"])
    if len(answers) > 1:
        for name, values in (("loss", losses), ("accuracy", right)):
            found = bootstrap(values, counts, statistic=lambda own, per: own.sum() / per.sum())
            facts[f"{name}_interval"] = (float(found.low), float(found.high))
    return facts


def example(settings: MaskSettings, rows: int, positions: int) -> dict[str, Tensor]:
    """A batch of ``rows`` rows of ``positions`` tokens; its values mean nothing."""
    places = torch.zeros(rows, num_hidden(positions, settings.share), dtype=torch.long)
    return token_batch(rows, positions) | {"places": places, "labels": places.clone()}


RECIPE = Recipe(
    name="mlm",
    head="masked-lm",
    settings=MaskSettings,
    read=read,
    encode=encode,
    objective=objective,
    answer=answer,
    score=score,
    example=example,
    collate=masked,
)
