"""Masked-LM training on plain text: some tokens of a row are hidden (masking.py), the model says what stood there.

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
from typing import TYPE_CHECKING

import numpy
import torch
from torch import Tensor, nn

from jieyue.data.batch import IGNORED, collate, pad_of, token_batch
from jieyue.data.findings import Findings
from jieyue.data.plain import note_repeated_lines, read_lines, shared_lines
from jieyue.decoding.slots import logits_at
from jieyue.metrics.intervals import bootstrap
from jieyue.report import Report
from jieyue.tally import Tally
from jieyue.tasks import POSITIONS, Card, Deciding, Facts, Judged, Prediction, Row, RunConfig, Task
from jieyue.tasks.batches import Done, answers_in_batches, num_tokens
from jieyue.tasks.fields import text_of
from jieyue.tasks.shipped import topics
from jieyue.tasks.sources import stretches
from jieyue.training.objective import Objective, token_loss

from .filling import fill_masks
from .masking import encode_lines, hide, num_hidden
from .settings import MaskSettings

if TYPE_CHECKING:
    from jieyue.hf.types import Tokenizer

__all__ = ["TASK", "Guess", "MaskTask", "masked_loss", "pseudo_perplexity"]

QUALITY = "Quality on held-out text"
BLOCK = 50  # neighbouring lines that stay together when some are held out
STRETCHES = 20  # that a limit leaves, at least

Hidden = Mapping[str, numpy.ndarray]


@dataclass(frozen=True, slots=True)
class Guess:
    """What a model makes of one row's hidden tokens: summed −log p, how many were guessed right, how many there were."""

    loss: float
    right: int
    count: int


class MaskTask(Task[str, MaskSettings, Guess]):
    """Lines of text; an answer is a guess for every row that they fill."""

    name = "mlm"
    title = "Masked language model"
    noun = "lines"
    doing = "guessing hidden tokens"
    head = "masked-lm"
    quality = QUALITY
    settings_class = MaskSettings
    deciding = Deciding(
        score="loss",
        title="Loss while training, on lines set aside",
        quantity="loss",
        unit="nats",
        higher_is_better=False,
    )
    card = Card(
        usage=lambda folder: (
            f'from transformers import pipeline\n\npipeline("fill-mask", model="{folder}")("… [MASK] …")'
        ),
        limits="A starting point for training on a task; it guesses hidden tokens of text like its training text.",
        tags=("fill-mask",),
    )

    def default_settings(self, config: RunConfig, seed: int) -> MaskSettings:
        return MaskSettings(seed=seed)

    # -- data

    def read(
        self, files: Sequence[str | Path], settings: MaskSettings, *, skip_bad: bool = False
    ) -> tuple[list[str], Findings]:
        return read_lines(files, skip_bad=skip_bad, encoding=settings.encoding)

    def shipped(self, limit: int | None, seed: int) -> tuple[list[str], Findings]:
        return _counted([one.text for one in topics(None if limit is None else 5 * limit, 60_000)])

    def shipped_held_out(self) -> tuple[list[str], Findings]:
        return _counted([one.text for one in topics()])

    def groups(self, examples: Sequence[str]) -> list[str]:
        """Neighbouring lines are often of one text: blocks of them, smaller ones where lines are few."""
        block = max(1, min(BLOCK, len(examples) // 200))
        return [examples[at - at % block] for at in range(len(examples))]

    def limited(self, examples: Sequence[str], limit: int | None, settings: MaskSettings, salt: str) -> Sequence[str]:
        """Stretches of neighbouring lines, which rows are made of; some dozens of them, so that they come from everywhere."""
        block = max(1, min(BLOCK, (limit or 0) // STRETCHES))
        return stretches(examples, [str(at // block) for at in range(len(examples))], limit, salt)

    def shared(self, train: Sequence[str], held_out: Sequence[str]) -> Mapping[str, int]:
        return shared_lines(train, held_out)

    def texts(self, examples: Sequence[str]) -> list[str]:
        return list(examples)

    # -- training

    def encode(
        self, examples: Sequence[str], tokenizer: Tokenizer, settings: MaskSettings, *, folder: Path | None = None
    ) -> tuple[list[Row], Counter[str]]:
        return encode_lines(examples, tokenizer, settings)

    def collate(self, rows: Sequence[Row], tokenizer: Tokenizer, settings: MaskSettings) -> dict[str, Tensor]:
        """``input_ids``, ``attention_mask`` [B, L], ``places``, ``labels`` [B, M], -100 beyond a row's own."""
        return collate([hide(row, tokenizer, settings) for row in rows], pad_of(tokenizer))

    def columns(self, settings: MaskSettings) -> tuple[str, ...]:
        return POSITIONS  # labels are those of the places that are hidden

    def objective(self, settings: MaskSettings) -> Objective:
        return masked_loss

    def example_batch(self, settings: MaskSettings, rows: int, positions: int) -> dict[str, Tensor]:
        places = torch.zeros(rows, num_hidden(positions, settings.share), dtype=torch.long)
        return token_batch(rows, positions) | {"places": places, "labels": places.clone()}

    # -- answering and judging

    def answer(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        examples: Sequence[str],
        settings: MaskSettings,
        *,
        batch_size: int = 32,
        done: Callable[[int, int], None] | None = None,
    ) -> list[Guess]:
        """Each row of these lines with the tokens hidden that its first visit would hide."""
        rows, _ = encode_lines(examples, tokenizer, settings)
        return _guesses(model, [hide(row, tokenizer, settings) for row in rows], pad_of(tokenizer), batch_size, done)

    def from_row(self, row: Facts, settings: MaskSettings) -> str:
        return text_of(row, ("text", "sentence", "content", "文本", "内容"), "a text with masks")

    def predict(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        rows: Sequence[Facts],
        settings: MaskSettings,
        *,
        batch_size: int = 32,
    ) -> list[Prediction]:
        """The text with the likeliest token at each of its masks (the tokenizer's, or "[MASK]"); its confidence is the geometric
        mean of their probabilities.
        """
        return fill_masks(model, tokenizer, [self.from_row(row, settings) for row in rows], batch_size)

    def score(self, answers: Sequence[Guess], examples: Sequence[str], memory: Facts | None = None) -> Facts:
        """``loss`` (nats a hidden token), ``perplexity`` = exp of it, ``accuracy``, ``tokens``; intervals over rows."""
        losses = [one.loss for one in answers]
        right, counts = [float(one.right) for one in answers], [float(one.count) for one in answers]
        total = sum(counts)
        facts: Facts = {"tokens": int(total), "loss": sum(losses) / total, "accuracy": sum(right) / total}
        facts["perplexity"] = math.exp(facts["loss"])
        if len(answers) > 1:
            for name, values in (("loss", losses), ("accuracy", right)):
                found = bootstrap(values, counts, statistic=lambda own, per: own.sum() / per.sum())
                facts[f"{name}_interval"] = (float(found.low), float(found.high))
        return facts

    def memory(self, examples: Sequence[str], tokenizer: Tokenizer, settings: MaskSettings) -> Facts:
        """How often each token stands in the training text: what guessing without context needs."""
        counts: Counter[int] = Counter()
        for row in encode_lines(examples, tokenizer, settings)[0]:
            counts.update(row["input_ids"][1:-1].tolist())
        return {"tokens": {str(token): count for token, count in counts.items()}}

    def compared(
        self,
        judged: Judged[str, Guess],
        model: nn.Module,
        tokenizer: Tokenizer,
        settings: MaskSettings,
        memory: Facts | None,
    ) -> Judged[str, Guess]:
        beside: Facts = {}
        if settings.pseudo_rows:
            found, count = pseudo_perplexity(model, tokenizer, judged.examples, settings, batch_size=judged.batch_size)
            beside |= {"pseudo_perplexity": found, "pseudo_tokens": count}
        if memory:
            beside["counting"] = _counting(memory["tokens"], tokenizer, judged.examples, settings)
        return replace(judged, beside=beside)

    def report(self, report: Report, judged: Judged[str, Guess], settings: MaskSettings, fitted: Facts) -> None:
        scores, beside, section = judged.scores, judged.beside, report.section(QUALITY)
        how = f"{scores['tokens']} hidden tokens; 95 % bootstrap interval over rows"
        section.fact("loss", scores["loss"], "nats", how, interval=scores.get("loss_interval"), key=True)
        section.fact("accuracy", scores["accuracy"], "share", how, interval=scores.get("accuracy_interval"), key=True)
        section.fact("masked perplexity", scores["perplexity"], how="exp of the loss, many tokens hidden at once")
        if "pseudo_perplexity" in beside:
            how = f"{beside['pseudo_tokens']} tokens, each hidden alone"
            section.fact("pseudo-perplexity", beside["pseudo_perplexity"], how=how, key=True)
        rows = [["this model", scores["loss"], scores["accuracy"]]]
        if "counting" in beside:
            counting = beside["counting"]
            rows.append(["token counts, no context", counting["loss"], counting["accuracy"]])
        section.table(["system", ("loss", "nats"), ("accuracy", "share")], rows, title="Beside the baseline")
        section.fact("speed", scores["tokens"] / max(judged.seconds, 1e-9), "per second", "hidden tokens guessed")

    def numbers(self, judged: Judged[str, Guess]) -> dict[str, float]:
        return {"loss": judged.scores["loss"], "accuracy": judged.scores["accuracy"]}


def masked_loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tally:
    """Sum of −log p of the hidden tokens, and how many these are."""
    return token_loss(_logits(model, batch), batch["labels"])


def pseudo_perplexity(
    model: nn.Module, tokenizer: Tokenizer, lines: Sequence[str], settings: MaskSettings, *, batch_size: int = 32
) -> tuple[float, int]:
    """(pseudo-perplexity, tokens) of ``settings.pseudo_rows`` rows spread over the lines: every token hidden alone.

    exp(−(1/n) Σ_t log p(x_t | all others)); special tokens are not asked for.
    """
    rows, _ = encode_lines(lines, tokenizer, settings)
    chosen = rows[:: max(1, len(rows) // max(1, settings.pseudo_rows))][: settings.pseudo_rows]
    hidden: list[Hidden] = []
    for row in chosen:
        for place in numpy.flatnonzero(row["words"] >= 0):
            ids = row["input_ids"].copy()
            ids[place] = tokenizer.mask_token_id
            labels = row["input_ids"][place : place + 1]
            hidden.append({"input_ids": ids, "places": numpy.array([place]), "labels": labels})
    found = _guesses(model, hidden, pad_of(tokenizer), batch_size, None)
    count = sum(one.count for one in found)
    return math.exp(sum(one.loss for one in found) / max(count, 1)), count


def _guesses(model: nn.Module, hidden: Sequence[Hidden], pad: int, batch_size: int, done: Done | None) -> list[Guess]:
    def read(_: list[Hidden], batch: dict[str, Tensor]) -> list[Guess]:
        logits, labels = _logits(model, batch).float(), batch["labels"]
        counted = labels != IGNORED
        loss = -logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0] * counted
        right = (logits.argmax(-1) == labels) & counted
        facts = zip(loss.sum(1).tolist(), right.sum(1).tolist(), counted.sum(1).tolist(), strict=True)
        return [Guess(own, int(hits), int(count)) for own, hits, count in facts]

    return answers_in_batches(
        model, hidden, num_tokens, lambda rows: collate(rows, pad), read, batch_size=batch_size, done=done
    )


def _logits(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    inputs = {name: value for name, value in batch.items() if name not in ("labels", "places")}
    return logits_at(model, inputs, batch["places"])


def _counting(
    tokens: Mapping[str, int], tokenizer: Tokenizer, lines: Sequence[str], settings: MaskSettings
) -> dict[str, float]:
    """The baseline without context: the training text's share of each token, add-one; on the very tokens that are hidden."""
    counts = {int(token): count for token, count in tokens.items()}
    total, likeliest = sum(counts.values()) + len(tokenizer), max(counts, key=lambda token: counts[token])
    hidden = [
        label
        for row in encode_lines(lines, tokenizer, settings)[0]
        for label in hide(row, tokenizer, settings)["labels"].tolist()
    ]
    loss = -sum(math.log((counts.get(label, 0) + 1) / total) for label in hidden) / len(hidden)
    return {"loss": loss, "accuracy": hidden.count(likeliest) / len(hidden)}


def _counted(lines: list[str]) -> tuple[list[str], Findings]:
    findings = Findings()
    findings.counts.update(lines=len(lines), characters=sum(map(len, lines)))
    note_repeated_lines(lines, findings)
    return lines, findings


TASK = MaskTask()
