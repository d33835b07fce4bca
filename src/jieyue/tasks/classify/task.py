"""Text classification with any encoder that transformers can put a classification head on.

Input ``[CLS] text [SEP]`` or ``[CLS] text [SEP] pair [SEP]``, cut to ``max_tokens``; −log p of the label. The label set is
that of the training examples, in alphabetical order, and stands in the model's configuration.

  data      TSV, CSV, JSON, JSON lines: data/labelled.py; by default the passages that ship, with their topics
  command   jieyue train classify, jieyue evaluate
  cost      one forward pass an example
  score     accuracy and macro-F1, each with its 95 % bootstrap interval
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy
import torch
from torch import Tensor, nn

from jieyue.data.batch import token_batch
from jieyue.data.findings import Findings
from jieyue.data.labelled import NAMES, Columns, Labelled, note_repeated, read_labelled, shared_texts
from jieyue.errors import InputError, message
from jieyue.metrics.calibration import calibration_error
from jieyue.metrics.classification import NaiveBayes, gain_over, score_labels
from jieyue.report import Report
from jieyue.tally import Tally
from jieyue.tasks import POSITIONS, Card, Deciding, Facts, Judged, Prediction, Row, Task
from jieyue.tasks.batches import answers_in_batches
from jieyue.tasks.fields import field_of, text_of
from jieyue.tasks.shipped import topics
from jieyue.training.objective import Objective, token_loss

from .report import QUALITY, report_quality
from .settings import ClassifySettings

if TYPE_CHECKING:
    from jieyue.hf.types import Tokenizer

__all__ = ["TASK", "Choice", "ClassifyTask", "label_set"]

_CHUNK = 2048


@dataclass(frozen=True, slots=True)
class Choice:
    """The likeliest label, its probability, and the others with theirs, likeliest first."""

    label: str
    confidence: float
    rivals: tuple[tuple[str, float], ...] = ()


def label_set(examples: Sequence[Labelled]) -> tuple[str, ...]:
    """The labels that occur, in order; whole numbers in the order of their values. ``InputError`` where there is one only."""
    names = {one.label for one in examples if one.label is not None}
    if len(names) < 2:
        raise InputError(message("labels", ", ".join(names) or "none", "two different ones or more"))
    return tuple(sorted(names, key=lambda name: (0, int(name), "") if name.isdecimal() else (1, 0, name)))


class ClassifyTask(Task[Labelled, ClassifySettings, Choice]):
    """A label for each text."""

    name = "classify"
    title = "Classification"
    noun = "examples"
    doing = "classifying"
    head = "classification"
    new_heads = ("classification",)
    quality = QUALITY
    settings_class = ClassifySettings
    curve_examples = 300
    deciding = Deciding(
        score="accuracy", title="Accuracy while training, on examples set aside", quantity="accuracy", unit="share"
    )
    card = Card(
        usage=lambda folder: (
            f'from transformers import pipeline\n\npipeline("text-classification", model="{folder}")("…")'
        ),
        limits="The labels are those of its training data. The numbers below hold for texts like those it was judged on.",
        tags=("text-classification",),
    )

    def resolved(self, settings: ClassifySettings, examples: Sequence[Labelled]) -> ClassifySettings:
        return settings if settings.labels else replace(settings, labels=label_set(examples))

    # -- data

    def read(
        self, files: Sequence[str | Path], settings: ClassifySettings, *, skip_bad: bool = False
    ) -> tuple[list[Labelled], Findings]:
        columns = Columns(text=settings.text_column, label=settings.label_column, pair=settings.pair_column)
        own = {"delimiter": settings.delimiter, "encoding": settings.encoding}
        return read_labelled(files, columns=columns, skip_bad=skip_bad, **own)

    def shipped(self, limit: int | None, seed: int) -> tuple[list[Labelled], Findings]:
        return _counted(topics(None if limit is None else 5 * limit, 20_000))

    def shipped_held_out(self) -> tuple[list[Labelled], Findings]:
        return _counted(topics())

    def groups(self, examples: Sequence[Labelled]) -> list[str]:
        return [one.text for one in examples]

    def is_known(self, example: Labelled) -> bool:
        return example.label is not None

    def shared(self, train: Sequence[Labelled], held_out: Sequence[Labelled]) -> Mapping[str, int]:
        return shared_texts(train, held_out)

    def texts(self, examples: Sequence[Labelled]) -> list[str]:
        return list(dict.fromkeys(text for one in examples for text in (one.text, one.pair) if text))

    # -- model and training

    def model_config(self, settings: ClassifySettings) -> Facts:
        names = dict(enumerate(settings.labels))
        return {"num_labels": len(names), "id2label": names, "label2id": {name: at for at, name in names.items()}}

    def encode(
        self,
        examples: Sequence[Labelled],
        tokenizer: Tokenizer,
        settings: ClassifySettings,
        *,
        folder: Path | None = None,
    ) -> tuple[list[Row], Counter[str]]:
        """A row: ``input_ids`` [L], ``labels`` [1] and, for pairs, ``token_type_ids`` where the tokenizer has them. Examples
        whose label is not known, or not one of ``settings.labels``, give no row.
        """
        number = {name: at for at, name in enumerate(settings.labels)}
        counts: Counter[str] = Counter(labels_unknown=0, texts_truncated=0)
        known = []
        for one in examples:
            counts["labels_unknown"] += one.label is None
            counts["labels_unseen"] += one.label is not None and one.label not in number
            if one.label in number:
                known.append(one)
        unknown_id = tokenizer.unk_token_id
        rows: list[Row] = []
        for row, one in zip(_rows(known, tokenizer, settings, counts), known, strict=True):
            rows.append({**row, "labels": numpy.array([number[str(one.label)]])})
            counts["tokens"] += len(row["input_ids"])
            counts["longest_row_tokens"] = max(counts["longest_row_tokens"], len(row["input_ids"]))
            if unknown_id is not None:
                counts["unknown_tokens"] += int((row["input_ids"] == unknown_id).sum())
        counts["rows"] = len(rows)
        return rows, counts

    def columns(self, settings: ClassifySettings) -> tuple[str, ...]:
        return POSITIONS

    def objective(self, settings: ClassifySettings) -> Objective:
        return label_loss

    def example_batch(self, settings: ClassifySettings, rows: int, positions: int) -> dict[str, Tensor]:
        return token_batch(rows, positions) | {"labels": torch.zeros(rows, 1, dtype=torch.long)}

    # -- answering and judging

    def answer(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        examples: Sequence[Labelled],
        settings: ClassifySettings,
        *,
        batch_size: int = 32,
        done: Callable[[int, int], None] | None = None,
    ) -> list[Choice]:
        rows = _rows(examples, tokenizer, settings, Counter())
        collate = partial(self.collate, tokenizer=tokenizer, settings=settings)

        def read(_: Sequence[Row], batch: dict[str, Tensor]) -> list[Choice]:
            return [_choice(own, settings.labels) for own in model(**batch).logits.float().softmax(-1).cpu()]

        return answers_in_batches(model, rows, _length, collate, read, batch_size=batch_size, done=done)

    def from_row(self, row: Facts, settings: ClassifySettings) -> Labelled:
        """The text in the column that training had, or in a usual one; a row of one field is that field."""
        text = text_of(row, NAMES["text"], "a text", _named(settings.text_column) if len(row) > 1 else None)
        pair = field_of(row, NAMES["pair"], _named(settings.pair_column))
        return Labelled(text, None, "" if pair is None else text_of(row, (), "a second text", pair))

    def told(self, answer: Choice) -> Prediction:
        return Prediction(answer.label, answer.confidence)

    def score(self, answers: Sequence[Choice], examples: Sequence[Labelled], memory: Facts | None = None) -> Facts:
        """``metrics.classification.score_labels`` over the examples whose label is known, and the calibration error."""
        pairs = [(own, one.label) for own, one in zip(answers, examples, strict=True) if one.label is not None]
        facts = score_labels([own.label for own, _ in pairs], [label for _, label in pairs])
        right = [own.label == label for own, label in pairs]
        facts["calibration_error"], _ = calibration_error([own.confidence for own, _ in pairs], right)
        return facts

    def memory(self, examples: Sequence[Labelled], tokenizer: Tokenizer, settings: ClassifySettings) -> Facts:
        """Counts of labels, and of words by label: what both baselines are made of."""
        known = [one for one in examples if one.label is not None]
        return NaiveBayes.learned([_whole(one) for one in known], [str(one.label) for one in known]).to_dict()

    def compared(
        self,
        judged: Judged[Labelled, Choice],
        model: nn.Module,
        tokenizer: Tokenizer,
        settings: ClassifySettings,
        memory: Facts | None,
    ) -> Judged[Labelled, Choice]:
        """Beside two baselines: the most frequent label, and naive Bayes; the gain over the better one with its paired interval."""
        golds = [str(one.label) for one in judged.examples]
        judged.scores["labels_unseen"] = sum(label not in settings.labels for label in golds)
        if not memory:
            return judged
        bayes = NaiveBayes.from_dict(memory)
        guesses = {
            "most frequent label": [bayes.most_frequent] * len(golds),
            "naive Bayes": bayes.predict([_whole(one) for one in judged.examples]),
        }
        facts = {name: score_labels(own, golds) for name, own in guesses.items()}
        best = max(facts, key=lambda name: facts[name]["accuracy"])
        gain, interval = gain_over([one.label for one in judged.answers], guesses[best], golds)
        return replace(judged, beside={"systems": facts, "best": best, "gain": gain, "gain_interval": interval})

    def report(
        self, report: Report, judged: Judged[Labelled, Choice], settings: ClassifySettings, fitted: Facts
    ) -> None:
        report_quality(report, judged.scores, judged.beside, len(judged.examples) / max(judged.seconds, 1e-9))
        section = report.section("Classified examples")
        step = max(1, len(judged.examples) // 12)
        shown = [
            [one.text[:160], str(one.label), own.label, own.confidence]
            for one, own in list(zip(judged.examples, judged.answers, strict=True))[::step][:12]
        ]
        section.table(
            ["text", "label", "found", ("confidence", "share")], shown, note="Every so many, not picked by hand."
        )

    def numbers(self, judged: Judged[Labelled, Choice]) -> dict[str, float]:
        return {"accuracy": judged.scores["accuracy"], "macro-F1": judged.scores["macro_f1"]}


def label_loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tally:
    """Sum of −log p(label) over the rows, and their number. ``labels`` [B, 1]."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    logits = model(**inputs).logits
    return token_loss(logits.float() if logits.dtype.itemsize < 4 else logits, batch["labels"][:, 0])


def _counted(examples: list[Labelled]) -> tuple[list[Labelled], Findings]:
    findings = Findings()
    findings.counts.update(examples=len(examples), labels=len({one.label for one in examples}))
    note_repeated(examples, findings)
    return examples, findings


def _named(column: str | None) -> str | None:
    """A column's name; None for a number, which only a table without header has."""
    return None if column is None or column.isdigit() else column


def _whole(one: Labelled) -> str:
    return f"{one.text} {one.pair}"


def _length(row: Row) -> int:
    return len(row["input_ids"])


def _choice(shares: Tensor, labels: Sequence[str]) -> Choice:
    best = shares.argsort(descending=True, stable=True)[:6].tolist()
    ranked = tuple((labels[place], float(shares[place])) for place in best)
    return Choice(ranked[0][0], ranked[0][1], ranked[1:])


def _rows(
    examples: Sequence[Labelled], tokenizer: Tokenizer, settings: ClassifySettings, counts: Counter[str]
) -> list[dict[str, numpy.ndarray]]:
    found: list[dict[str, numpy.ndarray]] = []
    paired = any(one.pair for one in examples)
    for at in range(0, len(examples), _CHUNK):
        some = examples[at : at + _CHUNK]
        pairs = [one.pair for one in some] if paired else None
        lengths = [len(ids) for ids in tokenizer([one.text for one in some], pairs, verbose=False)["input_ids"]]
        cut = tokenizer([one.text for one in some], pairs, truncation=True, max_length=settings.max_tokens)
        counts["texts_truncated"] += sum(length > settings.max_tokens for length in lengths)
        counts["longest_text_tokens"] = max(counts["longest_text_tokens"], *lengths)
        for place in range(len(some)):
            row = {"input_ids": numpy.array(cut["input_ids"][place])}
            if paired and "token_type_ids" in cut:
                row["token_type_ids"] = numpy.array(cut["token_type_ids"][place])
            found.append(row)
    return found


TASK = ClassifyTask()
