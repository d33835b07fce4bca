"""Text classification with any encoder that transformers can put a classification head on.

Input ``[CLS] text [SEP]`` or ``[CLS] text [SEP] pair [SEP]``, cut to ``max_tokens``. One label a text, any number of them, or a
number (``kinds.py`` has their losses). The label set is that of the training examples, in alphabetical order, and stands in the
model's configuration.

  data      TSV, CSV, JSON, JSON lines: data/labelled.py; by default the passages that ship, with their topics
  command   jieyue train classify, jieyue evaluate
  cost      one forward pass an example
  score     accuracy and macro-F1; micro- and macro-F1; Spearman, MSE and MAE: with 95 % bootstrap intervals
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy
import torch
from torch import Tensor, nn

from jieyue.data.batch import token_batch
from jieyue.data.findings import Findings
from jieyue.data.labelled import NAMES, Columns, Labelled, note_repeated, read_labelled, shared_texts
from jieyue.errors import InputError
from jieyue.metrics.calibration import calibration_error
from jieyue.metrics.classification import NaiveBayes, gain_over, score_labels
from jieyue.metrics.multilabel import score_sets
from jieyue.metrics.regression import score_numbers
from jieyue.report import Report
from jieyue.tasks import POSITIONS, Card, Deciding, Facts, Judged, Prediction, Row, RunConfig, Sources, Task
from jieyue.tasks.batches import answers_in_batches, num_tokens
from jieyue.tasks.fields import field_of, text_of
from jieyue.tasks.shipped import topics
from jieyue.training.objective import Objective

from .kinds import Choice, Choices, Estimated, label_set, label_weights, memory_of, objective_of, scores_beside
from .report import QUALITY, report_other_kinds, report_quality
from .rows import rows_of
from .settings import ClassifySettings
from .thresholds import fit_thresholds, told_thresholds

if TYPE_CHECKING:
    from jieyue.hf.types import Tokenizer

__all__ = ["TASK", "Choice", "Choices", "ClassifyTask", "Estimated", "label_set"]

Answer = Choice | Choices | Estimated


class ClassifyTask(Task[Labelled, ClassifySettings, Answer]):
    """A label, several labels, or a number for each text."""

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
        """With the kind of the labels, the labels, and what each weighs."""
        if settings.problem == "auto":
            settings = replace(settings, problem=_problem_of(examples))
        if settings.problem == "regression":
            return settings
        if not settings.labels:
            settings = replace(settings, labels=label_set(examples))
        return replace(settings, weights=label_weights(settings, examples))

    def deciding_of(self, settings: ClassifySettings) -> Deciding:
        return _DECIDING.get(settings.problem, self.deciding)

    # -- data

    def sources(self, config: RunConfig, settings: ClassifySettings, seed: int) -> Sources[Labelled]:
        return super().sources(config, self._decided(config, settings), seed)

    def check(
        self, config: RunConfig, settings: ClassifySettings
    ) -> tuple[Sequence[Labelled], dict[str, Findings], Mapping[str, int]]:
        return super().check(config, self._decided(config, settings))

    def _decided(self, config: RunConfig, settings: ClassifySettings) -> ClassifySettings:
        """With the kind of labels that the training files have, so that the held-out ones are read as the same."""
        if settings.problem != "auto" or not (config.data and config.held_out):
            return settings
        examples, _ = self.read(config.data, settings, skip_bad=config.skip_bad)
        return replace(settings, problem=_problem_of(examples))

    def read(
        self, files: Sequence[str | Path], settings: ClassifySettings, *, skip_bad: bool = False
    ) -> tuple[list[Labelled], Findings]:
        columns = Columns(text=settings.text_column, label=settings.label_column, pair=settings.pair_column)
        return read_labelled(
            files,
            columns=columns,
            skip_bad=skip_bad,
            delimiter=settings.delimiter,
            encoding=settings.encoding,
            problem=settings.problem,
            separator=settings.label_separator,
        )

    def shipped(self, limit: int | None, seed: int) -> tuple[list[Labelled], Findings]:
        return _counted(topics(None if limit is None else 5 * limit, 20_000))

    def shipped_held_out(self) -> tuple[list[Labelled], Findings]:
        return _counted(topics())

    def judging_sources(
        self, files: Sequence[str | Path], settings: ClassifySettings, *, skip_bad: bool = False
    ) -> Sources[Labelled]:
        """As every task's; ``InputError`` for a model of other labels than those of the corpus that ships, where no file is named."""
        found = super().judging_sources(files, settings, skip_bad=skip_bad)
        if not files and not {name for one in found.held_out for name in one.names} & {*settings.labels}:
            raise InputError("files", "none, and in the corpus that ships no label of this model", "files to judge by")
        return found

    def groups(self, examples: Sequence[Labelled]) -> list[str]:
        return [one.text for one in examples]

    def is_known(self, example: Labelled) -> bool:
        return example.is_known

    def shared(self, train: Sequence[Labelled], held_out: Sequence[Labelled]) -> Mapping[str, int]:
        return shared_texts(train, held_out)

    def texts(self, examples: Sequence[Labelled]) -> list[str]:
        return list(dict.fromkeys(text for one in examples for text in (one.text, one.pair) if text))

    # -- model and training

    def model_config(self, settings: ClassifySettings) -> Facts:
        names = dict(enumerate(settings.labels or ("LABEL_0",)))
        found: Facts = {"num_labels": len(names), "id2label": names, "label2id": {own: at for at, own in names.items()}}
        kind = {"multi-label": "multi_label_classification", "regression": "regression"}.get(settings.problem)
        return found | ({"problem_type": kind} if kind else {})

    def encode(
        self,
        examples: Sequence[Labelled],
        tokenizer: Tokenizer,
        settings: ClassifySettings,
        *,
        folder: Path | None = None,
    ) -> tuple[list[Row], Counter[str]]:
        """A row: ``input_ids`` [L], ``labels`` [1] ([C] of 0 and 1 where there are several) and, for pairs, ``token_type_ids``
        where the tokenizer has them. Examples whose label is not known, or not one of ``settings.labels``, give no row.
        """
        number = {name: at for at, name in enumerate(settings.labels)}
        counts: Counter[str] = Counter(labels_unknown=0, texts_truncated=0)
        is_number, several = settings.problem == "regression", settings.problem == "multi-label"
        known = []
        for one in examples:
            unseen = one.is_known and not is_number and not set(one.names) <= set(number)
            counts["labels_unknown"] += not one.is_known
            counts["labels_unseen"] += unseen
            if one.is_known and not unseen:
                known.append(one)
        unknown_id = tokenizer.unk_token_id
        rows: list[Row] = []
        for row, one in zip(rows_of(known, tokenizer, settings, counts), known, strict=True):
            if is_number:
                target = numpy.array([one.value], dtype=numpy.float64)
            elif several:
                target = numpy.array([int(name in one.names) for name in settings.labels])
            else:
                target = numpy.array([number[str(one.label)]])
            rows.append({**row, "labels": target})
            counts["tokens"] += len(row["input_ids"])
            counts["longest_row_tokens"] = max(counts["longest_row_tokens"], len(row["input_ids"]))
            if unknown_id is not None:
                counts["unknown_tokens"] += int((row["input_ids"] == unknown_id).sum())
        counts["rows"] = len(rows)
        return rows, counts

    def collate(self, rows: Sequence[Row], tokenizer: Tokenizer, settings: ClassifySettings) -> dict[str, Tensor]:
        """Rows as padded tensors; ``labels`` that are numbers stay floats [B, 1]."""
        batch = super().collate(rows, tokenizer, settings)
        if settings.problem == "regression" and "labels" in batch:
            batch["labels"] = torch.tensor([[float(row["labels"][0])] for row in rows], dtype=torch.float32)
        return batch

    def columns(self, settings: ClassifySettings) -> tuple[str, ...]:
        return POSITIONS

    def objective(self, settings: ClassifySettings) -> Objective:
        return objective_of(settings)

    def example_batch(self, settings: ClassifySettings, rows: int, positions: int) -> dict[str, Tensor]:
        width = len(settings.labels) if settings.problem == "multi-label" else 1
        kind = torch.float32 if settings.problem == "regression" else torch.long
        return token_batch(rows, positions) | {"labels": torch.zeros(rows, width, dtype=kind)}

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
    ) -> list[Answer]:
        rows = rows_of(examples, tokenizer, settings, Counter())
        collate = partial(self.collate, tokenizer=tokenizer, settings=settings)

        def read(_: Sequence[Row], batch: dict[str, Tensor]) -> list[Answer]:
            return _answers(model(**batch).logits.float().cpu(), settings)

        return answers_in_batches(model, rows, num_tokens, collate, read, batch_size=batch_size, done=done)

    def from_row(self, row: Facts, settings: ClassifySettings) -> Labelled:
        """The text in the column that training had, or in a usual one; a row of one field is that field."""
        text = text_of(row, NAMES["text"], "a text", _named(settings.text_column) if len(row) > 1 else None)
        pair = field_of(row, NAMES["pair"], _named(settings.pair_column))
        return Labelled(text, None, "" if pair is None else text_of(row, (), "a second text", pair))

    def told(self, answer: Answer) -> Prediction:
        if isinstance(answer, Estimated):
            return Prediction(answer.value)
        if isinstance(answer, Choices):
            return Prediction(answer.labels, answer.confidence)
        return Prediction(answer.label, answer.confidence)

    def score(self, answers: Sequence[Answer], examples: Sequence[Labelled], memory: Facts | None = None) -> Facts:
        """The scores of the labels' kind (``metrics``) over the examples whose label is known; for one label the calibration error."""
        known = [(own, one) for own, one in zip(answers, examples, strict=True) if one.is_known]
        sets = [(own.labels, one.names) for own, one in known if isinstance(own, Choices)]
        values = [(own.value, one.value) for own, one in known if isinstance(own, Estimated) and one.value is not None]
        if sets:
            return score_sets([own for own, _ in sets], [gold for _, gold in sets])
        if values:
            return score_numbers([own for own, _ in values], [gold for _, gold in values])
        pairs = [(own, str(one.label)) for own, one in known if isinstance(own, Choice)]
        facts = score_labels([own.label for own, _ in pairs], [label for _, label in pairs])
        right = [own.label == label for own, label in pairs]
        facts["calibration_error"], _ = calibration_error([own.confidence for own, _ in pairs], right)
        return facts

    def fitted(
        self, settings: ClassifySettings, model: nn.Module, tokenizer: Tokenizer, set_aside: Sequence[Labelled]
    ) -> tuple[ClassifySettings, Facts]:
        """Several labels: with the thresholds that suit the examples set aside, where none were given."""
        if settings.problem != "multi-label" or settings.thresholds is not None:
            return settings, {}
        answers = [own for own in self.answer(model, tokenizer, set_aside, settings) if isinstance(own, Choices)]
        return fit_thresholds(settings, answers, [one.names for one in set_aside])

    def memory(self, examples: Sequence[Labelled], tokenizer: Tokenizer, settings: ClassifySettings) -> Facts:
        """Counts of labels, and of words by label: what both baselines are made of; the most frequent set; the mean."""
        if settings.problem in _DECIDING:
            return memory_of(examples, settings.problem)
        known = [one for one in examples if one.label is not None]
        return NaiveBayes.learned([_whole(one) for one in known], [str(one.label) for one in known]).to_dict()

    def compared(
        self,
        judged: Judged[Labelled, Answer],
        model: nn.Module,
        tokenizer: Tokenizer,
        settings: ClassifySettings,
        memory: Facts | None,
    ) -> Judged[Labelled, Answer]:
        """Beside two baselines: the most frequent label, and naive Bayes; the gain over the better one with its paired interval."""
        if settings.problem in _DECIDING:
            systems = scores_beside(memory, judged.examples) if memory else {}
            return replace(judged, beside={"systems": systems})
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
        gain, interval = gain_over([str(self.told(one).answer) for one in judged.answers], guesses[best], golds)
        return replace(judged, beside={"systems": facts, "best": best, "gain": gain, "gain_interval": interval})

    def report(
        self, report: Report, judged: Judged[Labelled, Answer], settings: ClassifySettings, fitted: Facts
    ) -> None:
        rate = len(judged.examples) / max(judged.seconds, 1e-9)
        if settings.problem in _DECIDING:
            report_other_kinds(report, judged.scores, judged.beside["systems"], rate)
            if settings.problem == "multi-label":
                told_thresholds(report.section(QUALITY), settings, fitted)
        else:
            report_quality(report, judged.scores, judged.beside, rate)
        section = report.section("Classified examples")
        step = max(1, len(judged.examples) // 12)
        shown = [
            [one.text[:160], one.label or ", ".join(one.names), _shown(told.answer), told.confidence]
            for one, told in list(zip(judged.examples, map(self.told, judged.answers), strict=True))[::step][:12]
        ]
        section.table(
            ["text", "label", "found", ("confidence", "share")], shown, note="Every so many, not picked by hand."
        )

    def numbers(self, judged: Judged[Labelled, Answer]) -> dict[str, float]:
        names = next(names for names in _NUMBERS if names[0] in judged.scores)
        return {name.replace("_f1", "-F1").replace("_", " "): judged.scores[name] for name in names}


_NUMBERS: tuple[tuple[str, ...], ...] = (
    ("accuracy", "macro_f1"),
    ("micro_f1", "macro_f1", "exact_match"),
    ("spearman", "mse", "mae"),
)

_DECIDING = {
    "multi-label": Deciding(
        score="micro_f1", title="Micro-F1 while training, on examples set aside", quantity="micro-F1", unit="share"
    ),
    "regression": Deciding(
        score="spearman", title="Spearman's ρ while training, on examples set aside", quantity="Spearman's ρ", unit=""
    ),
}


def _problem_of(examples: Sequence[Labelled]) -> str:
    """The kind that reading has found."""
    if any(one.value is not None for one in examples):
        return "regression"
    return "multi-label" if any(one.labels is not None for one in examples) else "single-label"


def _answers(logits: Tensor, settings: ClassifySettings) -> list[Answer]:
    if settings.problem == "regression":
        return [Estimated(float(own[0])) for own in logits]
    if settings.problem == "multi-label":
        thresholds = settings.threshold_of_each()
        return [Choices.of(own, settings.labels, thresholds) for own in logits.sigmoid().tolist()]
    return [_choice(own, settings.labels) for own in logits.softmax(-1)]


def _shown(answer: str | float | Sequence[str] | Sequence[Facts] | None) -> str:
    return (
        answer if isinstance(answer, str) else ", ".join(map(str, answer)) if isinstance(answer, tuple) else str(answer)
    )


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


def _choice(shares: Tensor, labels: Sequence[str]) -> Choice:
    best = shares.argsort(descending=True, stable=True)[:6].tolist()
    ranked = tuple((labels[place], float(shares[place])) for place in best)
    return Choice(ranked[0][0], ranked[0][1], ranked[1:])


TASK = ClassifyTask()
