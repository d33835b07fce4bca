"""Token classification: the entities of a text, by any encoder that transformers can put a token classification head on.

Input ``[CLS] words [SEP]``; −log p of each word's tag (O, B-type, I-type) at its first token. Long texts are read by windows that
overlap by half; a word's tag is taken from the window that shows most around it. Tags become entities by seqeval's rules
(``data/tags.py``).

  data      CoNLL columns, JSON spans: data/tagged.py; none ships
  command   jieyue train tag, jieyue evaluate, jieyue predict
  cost      one forward pass a window
  score     F1 over whole entities, with its 95 % bootstrap interval
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy
from torch import Tensor, nn

from jieyue.data.batch import IGNORED, token_batch
from jieyue.data.findings import Findings
from jieyue.data.tagged import Tagged, read_tagged, words_of
from jieyue.data.tags import bio_of, spans_of
from jieyue.errors import InputError
from jieyue.metrics.entities import score_entities
from jieyue.report import Report
from jieyue.tally import Tally
from jieyue.tasks import Card, Deciding, Facts, Judged, Prediction, Row, Task
from jieyue.tasks.batches import answers_in_batches, num_tokens
from jieyue.tasks.fields import text_of
from jieyue.training.objective import Objective, token_loss

from .settings import TagSettings
from .windows import windows_of

if TYPE_CHECKING:
    from jieyue.hf.types import Tokenizer

__all__ = ["TASK", "Entities", "TagTask", "tag_loss"]


class Entities(tuple[tuple[str, int, int], ...]):
    """The entities found, in words; ``told``: as JSON values with their characters and texts; ``confidence``: the lowest of
    its words'."""

    told: tuple[Facts, ...] = ()
    confidence: float | None = None


class TagTask(Task[Tagged, TagSettings, Entities]):
    """The entities of each text."""

    name = "tag"
    title = "Tagging"
    noun = "texts"
    doing = "tagging"
    head = "token-classification"
    new_heads = ("token-classification",)
    quality = "Quality on held-out texts"
    settings_class = TagSettings
    deciding = Deciding(
        score="f1", title="Entity F1 while training, on texts set aside", quantity="entity F1", unit="share"
    )
    card = Card(
        usage=lambda folder: (
            f'from transformers import pipeline\n\npipeline("token-classification", model="{folder}", '
            'aggregation_strategy="first")("…")'
        ),
        limits="The types are those of its training data. The numbers below hold for texts like those it was judged on.",
        tags=("token-classification",),
    )

    def resolved(self, settings: TagSettings, examples: Sequence[Tagged]) -> TagSettings:
        if settings.types:
            return settings
        types = sorted({kind for one in examples for kind, _, _ in one.spans or ()})
        if not types:
            raise InputError("tag", "no entity in the training texts", "some of at least one type")
        return replace(settings, types=tuple(types))

    # -- data

    def read(
        self, files: Sequence[str | Path], settings: TagSettings, *, skip_bad: bool = False
    ) -> tuple[list[Tagged], Findings]:
        return read_tagged(files, column=settings.tag_column, skip_bad=skip_bad, encoding=settings.encoding)

    def shipped(self, limit: int | None, seed: int) -> tuple[list[Tagged], Findings]:
        raise InputError("data", "none", "CoNLL columns or JSON spans", "no corpus of entities ships: --data")

    def shipped_held_out(self) -> tuple[list[Tagged], Findings]:
        raise InputError("files", "none", "texts with entities", "no corpus of entities ships: name a file")

    def groups(self, examples: Sequence[Tagged]) -> list[str]:
        return [one.text for one in examples]

    def is_known(self, example: Tagged) -> bool:
        return example.spans is not None

    def shared(self, train: Sequence[Tagged], held_out: Sequence[Tagged]) -> Mapping[str, int]:
        known = {one.text for one in train}
        return {"texts": sum(one.text in known for one in held_out)}

    def texts(self, examples: Sequence[Tagged]) -> list[str]:
        return list(dict.fromkeys(one.text for one in examples))

    # -- model and training

    def model_config(self, settings: TagSettings) -> Facts:
        names = dict(enumerate(settings.tags))
        return {"num_labels": len(names), "id2label": names, "label2id": {name: at for at, name in names.items()}}

    def encode(
        self, examples: Sequence[Tagged], tokenizer: Tokenizer, settings: TagSettings, *, folder: Path | None = None
    ) -> tuple[list[Row], Counter[str]]:
        """A row a window: ``input_ids`` and ``labels`` [L], -100 but at the first tokens of the words that belong to it."""
        number = {name: at for at, name in enumerate(settings.tags)}
        counts: Counter[str] = Counter(longest_row_tokens=0)
        rows: list[Row] = []
        for one in examples:
            if one.spans is None or not {kind for kind, _, _ in one.spans} <= set(settings.types):
                counts["labels_unknown" if one.spans is None else "labels_unseen"] += 1
                continue
            tags = bio_of(one.spans, len(one.places))
            windows = windows_of(one, tokenizer, settings.max_tokens)
            counts["windows"] += len(windows)
            counts["texts_windowed"] += len(windows) > 1
            for window in windows:
                labels = numpy.full(len(window.ids), IGNORED)
                for word, place in window.first:
                    labels[place] = number[tags[word]]
                rows.append({"input_ids": numpy.array(window.ids), "labels": labels})
                counts["tokens"] += len(window.ids)
                counts["longest_row_tokens"] = max(counts["longest_row_tokens"], len(window.ids))
        counts["rows"] = len(rows)
        return rows, counts

    def objective(self, settings: TagSettings) -> Objective:
        return tag_loss

    def example_batch(self, settings: TagSettings, rows: int, positions: int) -> dict[str, Tensor]:
        return token_batch(rows, positions)

    # -- answering and judging

    def answer(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        examples: Sequence[Tagged],
        settings: TagSettings,
        *,
        batch_size: int = 32,
        done: Callable[[int, int], None] | None = None,
    ) -> list[Entities]:
        windows = [windows_of(one, tokenizer, settings.max_tokens) for one in examples]
        rows: list[Row] = [
            {"input_ids": numpy.array(window.ids), "first": [*window.first]} for own in windows for window in own
        ]

        def read(some: Sequence[Row], batch: dict[str, Tensor]) -> list[list[tuple[int, int, float]]]:
            shares, best = model(**batch).logits.float().softmax(-1).max(-1)
            told, sure = best.tolist(), shares.tolist()
            return [
                [(word, told[at][place], sure[at][place]) for word, place in row["first"]]
                for at, row in enumerate(some)
            ]

        collate = partial(self.collate, tokenizer=tokenizer, settings=settings)
        read_rows = iter(
            answers_in_batches(model, rows, num_tokens, collate, read, batch_size=batch_size, done=done) if rows else []
        )
        names, found = settings.tags, []
        for one, own in zip(examples, windows, strict=True):
            tags, sure = ["O"] * len(one.places), [1.0] * len(one.places)
            for _ in own:
                for word, tag, share in next(read_rows):
                    tags[word], sure[word] = names[tag], share
            found.append(_entities(one, tags, sure))
        return found

    def from_row(self, row: Facts, settings: TagSettings) -> Tagged:
        """The text of a row."""
        return words_of(text_of(row, ("text", "sentence", "content", "文本"), "a text"))

    def told(self, answer: Entities) -> Prediction:
        """A list of ``{"start", "end", "type", "text"}``, in characters."""
        return Prediction(answer.told, answer.confidence)

    def score(self, answers: Sequence[Entities], examples: Sequence[Tagged], memory: Facts | None = None) -> Facts:
        known = [(own, one.spans) for own, one in zip(answers, examples, strict=True) if one.spans is not None]
        return score_entities([own for own, _ in known], [gold for _, gold in known])

    def memory(self, examples: Sequence[Tagged], tokenizer: Tokenizer, settings: TagSettings) -> Facts:
        """The entities of training by their text, each with its most frequent type."""
        counts: dict[str, Counter[str]] = {}
        for one in examples:
            for kind, start, end in one.spans or ():
                counts.setdefault(" ".join(one.words[start:end]), Counter())[kind] += 1
        return {"entities": {text: own.most_common(1)[0][0] for text, own in counts.items()}}

    def compared(
        self,
        judged: Judged[Tagged, Entities],
        model: nn.Module,
        tokenizer: Tokenizer,
        settings: TagSettings,
        memory: Facts | None,
    ) -> Judged[Tagged, Entities]:
        """Beside two baselines: no entity at all, and those that training had, wherever they stand, the longest first."""
        golds = [one.spans or () for one in judged.examples]
        systems = {"the majority tag, O": score_entities([()] * len(golds), golds)}
        if memory:
            found = [_looked_up(one.words, memory["entities"]) for one in judged.examples]
            systems["dictionary of training entities"] = score_entities(found, golds)
        return replace(judged, beside={"systems": systems})

    def report(self, report: Report, judged: Judged[Tagged, Entities], settings: TagSettings, fitted: Facts) -> None:
        section, scores = report.section(self.quality), judged.scores
        how = f"{scores['entities']} entities in {scores['examples']} texts; whole entities, seqeval's rules; 95 % interval"
        section.fact("entity F1", scores["f1"], "share", how, interval=scores.get("f1_interval"), key=True)
        rows = [
            [name, *(own[key] for key in ("precision", "recall", "f1"))]
            for name, own in {"this tagger": scores, **judged.beside["systems"]}.items()
        ]
        columns: list[str | tuple[str, str]] = [("precision", "share"), ("recall", "share"), ("F1", "share")]
        section.table(["system", *columns], rows, title="Beside the baselines")
        section.fact("speed", len(judged.examples) / max(judged.seconds, 1e-9), "per second", "texts, windows included")
        types = [[name, *own.values()] for name, own in scores["by_type"].items()]
        report.section("Each type").table(["type", "entities", *columns], types, title="Each type")

    def numbers(self, judged: Judged[Tagged, Entities]) -> dict[str, float]:
        return {"entity F1": judged.scores["f1"], **{name: judged.scores[name] for name in ("precision", "recall")}}


def tag_loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tally:
    """Sum of −log p(tag) over the words, and their number. ``labels`` [B, L], -100 where no word begins."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    return token_loss(model(**inputs).logits, batch["labels"])


def _entities(one: Tagged, tags: Sequence[str], sure: Sequence[float]) -> Entities:
    spans = spans_of(tags)
    found, told = Entities(spans), []
    for kind, start, end in spans:
        first, last = one.places[start][0], one.places[end - 1][1]
        told.append({"start": first, "end": last, "type": kind, "text": one.text[first:last]})
    found.told, found.confidence = tuple(told), min(sure) if sure else None
    return found


def _looked_up(words: Sequence[str], entities: Mapping[str, str]) -> list[tuple[str, int, int]]:
    longest = max((text.count(" ") + 1 for text in entities), default=0)
    found, at = [], 0
    while at < len(words):
        ends = range(min(len(words), at + longest), at, -1)
        end = next((end for end in ends if " ".join(words[at:end]) in entities), None)
        if end is not None:
            found.append((entities[" ".join(words[at:end])], at, end))
        at = end or at + 1
    return found


TASK = TagTask()
