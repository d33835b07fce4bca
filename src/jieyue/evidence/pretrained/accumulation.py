"""Article 3 on pretrained weights and a real task: are N micro-batches one batch, ours, a plain loop's and the Trainer's?

A pretrained encoder with a new head learns to classify sentences (SST-2; a topic where nothing larger is given). Within a
seed every way begins with the same weights and takes the same rows in the same order; dropout is off, AdamW, a constant rate.

- one batch: all rows of an update at once
- pieces, ours: ``training.accumulate``, the gradient of the sum over all labels
- pieces, a plain loop: each piece's mean loss, divided by the number of pieces
- pieces, transformers' Trainer: unchanged, ``gradient_accumulation_steps``

And one update in float64 of a batch whose last piece is smaller, ours and the Trainer's beside the undivided one.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from jieyue.bench.equality import verify_update, without_dropout
from jieyue.evidence.claims import FAILS, HOLDS, Cell, Claim, Pairs, Place, Scale, Verdict
from jieyue.evidence.judging import by_seed, decide, difference, mean, together
from jieyue.hf.plain_trainer import train_by_trainer
from jieyue.json_values import Facts
from jieyue.report import Estimate
from jieyue.report.amounts import Given
from jieyue.run.config import TrainingConfig
from jieyue.run.prepare import Prepared, prepare
from jieyue.tasks import RunConfig
from jieyue.tasks.classify.settings import ClassifySettings
from jieyue.tasks.table import task
from jieyue.training.accumulation import accumulate

from .template import Template
from .weights import ENCODER

__all__ = ["TEMPLATES"]

KEY = "pretrained-accumulation"
WHOLE, OURS, PLAIN, TRAINER = "one batch", "pieces, ours", "pieces, a plain loop", "pieces, transformers' Trainer"
WAYS = (WHOLE, OURS, PLAIN, TRAINER)
EQUAL = 1e-9  # of a gradient's largest entry, float64
MARGIN = 0.01  # of accuracy
SIZES: dict[str, Facts] = {
    "minutes": {"updates": 10, "batch": 16, "piece": 4, "judged": 100, "rate": 2e-4, "tokens": 64},
    "hour": {
        "updates": 60, "batch": 16, "piece": 4, "judged": 400, "rate": 1e-4, "tokens": 64,
        "data": ["classification/sst2_glue/train.tsv.xz", "classification/sst2_glue/dev.tsv"],
    },
}  # fmt: skip
CHANCE = "accuracy of one batch over always the commonest label"  # two ways that learned nothing answer alike too
SPARE = 2  # rows of the float64 batch beyond four pieces


def _cells(scale: Scale, seeds: Sequence[int]) -> list[Cell]:
    return [Cell(KEY, SIZES[scale], seed) for seed in seeds] if scale in SIZES else []


def _measure(cell: Cell, place: Place) -> Facts:
    """Of each way: accuracy, seconds, how far its weights end from those of one batch, and how often it answers as that does."""
    asked = cell.settings
    prepared = _prepared(asked, cell.seed, place)
    size, generator = asked["batch"], torch.Generator().manual_seed(cell.seed)
    order: list[int] = []
    while len(order) < asked["updates"] * size:  # as many epochs as it takes
        order += torch.randperm(len(prepared.rows), generator=generator).tolist()
    batches = [prepared.batch(order[at * size : (at + 1) * size]) for at in range(asked["updates"])]
    held = prepared.sources.held_out[: asked["judged"]]
    (_, most), *_ = Counter(one.label for one in held).most_common(1)
    numbers: Facts = {"judged": len(held), "commonest": most / len(held)}
    start = _weights(prepared.model.build())
    answers: list[str] = []
    reference = start
    for way in WAYS:
        model = without_dropout(prepared.model.build()).train()
        began = time.perf_counter()
        _train(way, model, prepared, batches, asked)
        numbers[f"{way} seconds"] = time.perf_counter() - began
        found = prepared.task.answer(model, prepared.model.tokenizer, held, prepared.settings)
        numbers[f"{way} accuracy"] = prepared.task.score(found, held)["accuracy"]
        told, own = [str(prepared.task.told(one).answer) for one in found], _weights(model)
        if way == WHOLE:
            answers, reference = told, own
        numbers[f"{way} same answers"] = sum(map(str.__eq__, told, answers)) / len(held)
        numbers[f"{way} apart"] = float((own - reference).norm() / (reference - start).norm())
    batch = prepared.batch(order[: 4 * asked["piece"] + SPARE])
    checked = verify_update(
        prepared.model.build(),
        prepared.plain,
        batch,
        micro_batch=asked["piece"],
        settings=("accumulation", "transformers"),
        dtype=torch.float64,
    )
    for way, one in zip((OURS, TRAINER), checked.settings, strict=True):
        numbers[f"{way} update"] = {
            "largest": one.largest,
            "ratio": one.ratio,
            "cosine": one.cosine,
            "told": one.verdict,
        }
    return numbers


def _prepared(asked: Facts, seed: int, place: Place) -> Prepared:
    files: list[Path] = []
    if "data" in asked:
        assert place.data is not None  # ``running`` refuses before
        files = [place.data / one for one in asked["data"]]
    config = RunConfig(
        model=str(place.weights),
        data=files[:1],
        held_out=files[1:],
        limit=max(asked["updates"] * asked["batch"], asked["judged"]),
        new_head=True,
        settings=ClassifySettings(max_tokens=asked["tokens"]),
    )
    return prepare(task("classify"), config, TrainingConfig(seed=seed))


def _train(way: str, model: nn.Module, prepared: Prepared, batches: Sequence[dict[str, Tensor]], asked: Facts) -> None:
    if way == TRAINER:
        train_by_trainer(model, batches, micro_batch=asked["piece"], learning_rate=asked["rate"])
        return
    optimizer = torch.optim.AdamW(model.parameters(), lr=asked["rate"], weight_decay=0.0)
    for batch in batches:
        optimizer.zero_grad()
        if way == PLAIN:
            pieces = asked["batch"] // asked["piece"]
            for at in range(pieces):
                rows = slice(at * asked["piece"], (at + 1) * asked["piece"])
                loss = prepared.plain(model, {name: value[rows] for name, value in batch.items()}).mean()
                (torch.as_tensor(loss) / pieces).backward()
        else:
            accumulate(prepared.plain, model, batch, micro_batch=asked["batch"] if way == WHOLE else asked["piece"])
        optimizer.step()


def _weights(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().double().flatten() for parameter in model.parameters()])


def _judge(results: Pairs) -> Verdict:
    """Ours alone decides: its float64 update is the undivided one's, and its accuracy that of one batch, which learned something,
    within the margin."""
    accuracy = {way: by_seed(results, f"{way} accuracy") for way in WAYS}
    gap = difference(accuracy[OURS], accuracy[WHOLE])
    gains = {
        CHANCE: difference(accuracy[WHOLE], by_seed(results, "commonest")),
        f"accuracy of ours over one batch, plus {MARGIN:g}": Estimate(
            gap.value + MARGIN, gap.low + MARGIN, gap.high + MARGIN
        ),
        f"accuracy of one batch over ours, plus {MARGIN:g}": Estimate(
            MARGIN - gap.value, MARGIN - gap.high, MARGIN - gap.low
        ),
    }
    updates = {way: [numbers[f"{way} update"] for _, numbers in results] for way in (OURS, TRAINER)}
    largest = max(one["largest"] for one in updates[OURS])
    rows: list[list[Given]] = [
        [
            way,
            mean(accuracy[way]),
            mean(by_seed(results, f"{way} same answers")),
            mean(by_seed(results, f"{way} apart")),
            mean(by_seed(results, f"{way} seconds")),
            "; ".join(dict.fromkeys(one["told"] for one in updates[way])) if way in updates else "–",
        ]
        for way in WAYS
    ]
    columns: list[str | tuple[str, str]] = [
        "way", ("accuracy", "share"), ("answers as one batch does", "share"), "weights apart, of the way gone",
        ("training", "seconds"), "one update in float64, last piece smaller",
    ]  # fmt: skip
    decided = decide(gains, columns=columns, rows=rows)
    exact = HOLDS if largest <= EQUAL else FAILS
    why = (
        f"ours differs from the undivided update by at most {largest:.1e} of its largest entry (rounding allows {EQUAL:g}); "
        f"{decided.why}"
    )
    return Verdict(together([exact, decided.word]), why, columns, rows)


TEMPLATES = (
    Template(
        claim=Claim(
            key=KEY,
            article=3,
            sentence="On pretrained weights and a real task N micro-batches are one batch: the same update in float64, and the same "
            f"accuracy after training (within {100 * MARGIN:g} point)",
            articles_number="equal by derivation; sentiment with batch 100 and 1, no number given",
            cells=_cells,
            measure=_measure,
            judge=_judge,
        ),
        refuses=lambda model: (
            None
            if model["kind"] == ENCODER
            else "sentences are classified by an encoder with a new head, and this is a decoder"
        ),
        beside=("accumulation-learns-alike", "accumulation-same-weights", "accumulation-ragged-labels"),
    ),
)
