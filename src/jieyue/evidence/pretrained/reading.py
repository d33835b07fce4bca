"""Article 2's baseline on pretrained weights: a span head on a pretrained encoder, and on the same architecture with fresh weights.

Both read the same composed English questions (the corpus that ships, at both scales: its passages are short), in the same order,
with the same updates, and answer the same held-out questions. Masked reading needs a masked-LM head, which sentence encoders lack.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from jieyue.budget import Budget, Plan
from jieyue.data.corpora import compose
from jieyue.evidence.claims import Cell, Claim, Pairs, Place, Scale, Verdict
from jieyue.evidence.judging import by_seed, decide, difference, mean
from jieyue.hf.loading import load_config, load_tokenizer, model_from_config, save
from jieyue.json_values import Facts
from jieyue.report import write_whole
from jieyue.report.amounts import Given
from jieyue.run.comparison import train_on
from jieyue.run.config import TrainingConfig
from jieyue.tasks import RunConfig
from jieyue.tasks.read.settings import ReadSettings
from jieyue.tasks.read.task import TASK

from .template import Template
from .weights import ENCODER

__all__ = ["TEMPLATES"]

KEY = "pretrained-reading"
PRETRAINED, FRESH = "pretrained", "fresh weights"
NUMBERS = ("final", "exact_match", "f1")
SIZES: dict[str, Facts] = {
    "minutes": {"updates": 10, "batch": 8, "judged": 60, "rate": 2e-4},
    "hour": {"updates": 40, "batch": 8, "judged": 120, "rate": 2e-4},
}
LENGTHS: Facts = {"answer_slots": 12, "question_tokens": 24, "window_tokens": 64, "overlap_tokens": 16}


def _cells(scale: Scale, seeds: Sequence[int]) -> list[Cell]:
    return [Cell(KEY, SIZES[scale], seed) for seed in seeds] if scale in SIZES else []


def _measure(cell: Cell, place: Place) -> Facts:
    """Final, exact match and F1 of both, and the seconds of training."""
    assert place.weights is not None  # ``bind`` gives it
    asked = cell.settings
    settings = ReadSettings(reader="span", seed=cell.seed, **LENGTHS)
    count = 2 * asked["updates"] * asked["batch"]
    train, held = (
        write_whole(place.folder / f"{split}.json", json.dumps(compose(split, cell.seed, questions, languages=("en",))))
        for split, questions in (("train", count), ("heldout", asked["judged"]))
    )
    training = TrainingConfig(
        steps=asked["updates"], effective_batch=asked["batch"], learning_rate=asked["rate"], seed=cell.seed,
        curriculum="1:0.5", plan=Plan(effective_batch=asked["batch"], micro_batch=asked["batch"]),
    )  # fmt: skip
    numbers: Facts = {}
    for way in (PRETRAINED, FRESH):
        folder = place.weights if way == PRETRAINED else _fresh(place.weights, place.folder / "fresh", cell.seed)
        config = RunConfig(model=str(folder), data=[train], held_out=[held], settings=settings, new_head=True)
        work = place.folder / way.replace(" ", "-")
        prepared, _, trained = train_on(TASK, config, training, work, Budget.parse("4GiB"), curve=None)
        questions = prepared.sources.held_out
        answers = TASK.answer(
            trained.model, prepared.model.tokenizer, questions, settings.fitted(prepared.model.positions)
        )
        facts = TASK.score(answers, questions)
        numbers |= {f"{way} {what}": facts[what] for what in NUMBERS}
        numbers[f"{way} seconds"] = trained.facts["seconds"]
    return numbers


def _fresh(weights: Path, folder: Path, seed: int) -> Path:
    """The same architecture and tokenizer, its weights drawn anew."""
    torch.manual_seed(seed)
    model = model_from_config(load_config(weights), None)
    return save(model, load_tokenizer(weights), folder, {})


def _judge(results: Pairs) -> Verdict:
    """Pretrained weights read better: Final over that of fresh weights lies above 0."""
    own = {way: {what: by_seed(results, f"{way} {what}") for what in NUMBERS} for way in (PRETRAINED, FRESH)}
    rows: list[list[Given]] = [
        [way, *(mean(values) for values in own[way].values()), mean(by_seed(results, f"{way} seconds"))]
        for way in (PRETRAINED, FRESH)
    ]
    columns: list[str | tuple[str, str]] = [
        "weights", ("Final", "share"), ("exact match", "share"), ("F1", "share"), ("training", "seconds"),
    ]  # fmt: skip
    gain = difference(own[PRETRAINED]["final"], own[FRESH]["final"])
    return decide({"Final of pretrained over fresh weights": gain}, unit="share", columns=columns, rows=rows)


TEMPLATES = (
    Template(
        claim=Claim(
            key=KEY,
            article=2,
            sentence="A span head on pretrained weights reads better than on fresh weights of the same architecture, after the same "
            "updates",
            articles_number="none given: all its readers are pretrained",
            cells=_cells,
            measure=_measure,
            judge=_judge,
        ),
        refuses=lambda model: (
            None if model["kind"] == ENCODER else "a span head sees the whole passage, and this is a decoder"
        ),
        beside=("masked-reading",),
    ),
)
