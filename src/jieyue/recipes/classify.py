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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy
import torch
from torch import Tensor

from jieyue.data.batch import collate, token_batch
from jieyue.data.findings import Findings
from jieyue.data.labelled import Columns, Labelled, read_labelled
from jieyue.errors import InputError, message
from jieyue.metrics.classification import score_labels
from jieyue.tally import Tally
from jieyue.training.objective import token_loss

from . import Recipe, Settings

__all__ = ["RECIPE", "Choice", "ClassifySettings", "answer", "encode", "label_set", "objective", "read", "score"]

_CHUNK = 2048


@dataclass(frozen=True, kw_only=True)
class ClassifySettings(Settings):
    """``max_tokens``: of a row, special tokens included. ``labels``: all of them, in order; () until the data are read.

    ``text_column``, ``label_column``, ``pair_column``: names or numbers (``data.labelled.Columns``), None = found by name.
    """

    max_tokens: int = 128
    labels: tuple[str, ...] = ()
    text_column: str | None = None
    label_column: str | None = None
    pair_column: str | None = None

    def __post_init__(self) -> None:
        if self.max_tokens < 4:
            raise InputError(f"max_tokens={self.max_tokens}: expected at least 4")

    @property
    def columns(self) -> Columns:
        return Columns(text=self.text_column, label=self.label_column, pair=self.pair_column)

    def fitted(self, positions: int) -> Self:
        """These settings with shorter rows where the model has fewer ``positions``."""
        return replace(self, max_tokens=min(self.max_tokens, positions))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"labels": list(self.labels)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        return super().from_dict({**values, "labels": tuple(values.get("labels", ()))})


def label_set(examples: Sequence[Labelled]) -> tuple[str, ...]:
    """The labels that occur, in order; whole numbers in the order of their values. ``InputError`` where there is one only."""
    names = {one.label for one in examples if one.label is not None}
    if len(names) < 2:
        raise InputError(message("labels", ", ".join(names) or "none", "two different ones or more"))
    return tuple(sorted(names, key=lambda name: (0, int(name), "") if name.isdecimal() else (1, 0, name)))


def read(
    paths: str | Path | Sequence[str | Path], *, skip_bad: bool = False, columns: Columns | None = None
) -> tuple[list[Labelled], Findings]:
    """Examples of the files and what was found: ``data.labelled.read_labelled``."""
    return read_labelled(paths, columns=columns or Columns(), skip_bad=skip_bad)


def encode(
    examples: Sequence[Labelled], tokenizer: Any, settings: ClassifySettings
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Training rows and what became of everything that gave none.

    A row: ``input_ids`` [L], ``labels`` [1] and, for pairs, ``token_type_ids`` where the tokenizer has them. Examples
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
    unknown_id = getattr(tokenizer, "unk_token_id", None)
    rows: list[dict[str, Any]] = []
    for row, one in zip(_rows(known, tokenizer, settings, counts), known, strict=True):
        row["labels"] = numpy.array([number[str(one.label)]])
        rows.append(row)
        counts["tokens"] += len(row["input_ids"])
        counts["longest_row_tokens"] = max(counts["longest_row_tokens"], len(row["input_ids"]))
        if unknown_id is not None:
            counts["unknown_tokens"] += int((row["input_ids"] == unknown_id).sum())
    counts["rows"] = len(rows)
    return rows, counts


def _rows(
    examples: Sequence[Labelled], tokenizer: Any, settings: ClassifySettings, counts: Counter[str]
) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
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


def objective(model: Any, batch: Mapping[str, Tensor]) -> Tally:
    """Sum of −log p(label) over the rows, and their number. ``labels`` [B, 1]."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    logits = model(**inputs).logits
    return token_loss(logits.float() if logits.dtype.itemsize < 4 else logits, batch["labels"][:, 0])


@dataclass(frozen=True, slots=True)
class Choice:
    """The likeliest label, its probability, and the others with theirs, likeliest first."""

    label: str
    confidence: float
    rivals: tuple[tuple[str, float], ...] = ()


def answer(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Labelled],
    settings: ClassifySettings,
    *,
    batch_size: int = 32,
    progress: Callable[[int, int], None] | None = None,
) -> list[Choice]:
    """A label for every example, in order; rows of like length share a batch. The model is put into evaluation mode and back."""
    rows = _rows(examples, tokenizer, settings, Counter())
    order = sorted(range(len(rows)), key=lambda at: -len(rows[at]["input_ids"]))
    device, was_training = next(model.parameters()).device, model.training
    found: dict[int, Choice] = {}
    model.eval()
    try:
        with torch.inference_mode():
            for at in range(0, len(order), batch_size):
                chosen = order[at : at + batch_size]
                batch = collate([rows[number] for number in chosen], tokenizer.pad_token_id)
                logits = model(**{name: value.to(device) for name, value in batch.items()}).logits
                shares = logits.float().softmax(-1).cpu()
                for number, own in zip(chosen, shares, strict=True):
                    best = own.argsort(descending=True, stable=True)[:6].tolist()
                    ranked = tuple((settings.labels[place], float(own[place])) for place in best)
                    found[number] = Choice(ranked[0][0], ranked[0][1], ranked[1:])
                if progress is not None:
                    progress(at + len(chosen), len(order))
    finally:
        model.train(was_training)
    return [found[number] for number in range(len(rows))]


def score(answers: Sequence[Choice], examples: Sequence[Labelled]) -> dict[str, Any]:
    """Facts of ``metrics.classification.score_labels`` over the examples whose label is known."""
    known = [(one.label, example.label) for one, example in zip(answers, examples, strict=True) if example.label]
    return score_labels([own for own, _ in known], [gold for _, gold in known])


def example(settings: ClassifySettings, rows: int, positions: int) -> dict[str, Tensor]:
    """A batch of ``rows`` rows of ``positions`` tokens; its values mean nothing."""
    return token_batch(rows, positions) | {"labels": torch.zeros(rows, 1, dtype=torch.long)}


RECIPE = Recipe(
    name="classify",
    head="classification",
    settings=ClassifySettings,
    read=read,
    encode=encode,
    objective=objective,
    answer=answer,
    score=score,
    example=example,
)
