"""Article 7 on pretrained weights: dialogue on top of a pretrained decoder, beside one from scratch and transformers' own Trainer.

- pretrained: ``train chat`` on the model's folder, a few dialogues
- transformers' Trainer: the same dialogues, updates, rate and schedule, from the same weights
- as loaded: nothing trained
- from scratch: the smallest preset, with ten times as many updates of more dialogues each

All are judged by nats per character of the same held-out dialogues: tokenizers differ, so perplexities of tokens would not compare.
Replies of the trained one are drawn by top-k 5 and by top-p 0.9.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from jieyue.budget import Budget, Plan
from jieyue.data.dialogues import Dialogue
from jieyue.decoding.sampling import Sampling
from jieyue.evidence.claims import Cell, Claim, Pairs, Place, Scale, Verdict
from jieyue.evidence.judging import by_seed, decide, difference, mean
from jieyue.hf.plain_trainer import train_by_trainer
from jieyue.json_values import Facts
from jieyue.report.amounts import Given
from jieyue.run.comparison import train_on
from jieyue.run.config import TrainingConfig
from jieyue.run.prepare import Prepared
from jieyue.tasks import RunConfig
from jieyue.tasks.chat.replies import log_probability, reply_to, score_replies
from jieyue.tasks.chat.settings import ChatSettings
from jieyue.tasks.chat.task import TASK
from jieyue.training.objective import IGNORED

from .template import Template
from .weights import DECODER

if TYPE_CHECKING:
    from jieyue.hf.types import Tokenizer

__all__ = ["TEMPLATES"]

KEY = "pretrained-dialogue"
PRETRAINED, TRAINER, LOADED, SCRATCH = "pretrained", "transformers' Trainer", "as loaded", "from scratch"
ARMS = (PRETRAINED, TRAINER, LOADED, SCRATCH)
WAYS = {"top-k 5": Sampling(top_k=5), "top-p 0.9": Sampling(top_k=0, top_p=0.9)}
SCORES = ("bleu_2", "dist_2", "repetition")
LONGER = 10  # times as many updates from scratch
SIZES: dict[str, Facts] = {
    "minutes": {
        "updates": 6, "batch": 4, "piece": 2, "tokens": 96, "rate": 5e-5, "judged": 16, "replied": 8, "written": 12,
        "scratch_batch": 8, "scratch_limit": 500,
    },
    "hour": {
        "updates": 8, "batch": 4, "piece": 2, "tokens": 96, "rate": 5e-5, "judged": 20, "replied": 16, "written": 20,
        "scratch_batch": 8, "scratch_limit": 1000,
        "data": ["dialogue/dailydialog/dialogues_train.txt.xz", "dialogue/dailydialog/dialogues_validation.txt.xz"],
    },
}  # fmt: skip


def _cells(scale: Scale, seeds: Sequence[int]) -> list[Cell]:
    return [Cell(KEY, SIZES[scale], seed) for seed in seeds] if scale in SIZES else []


def _measure(cell: Cell, place: Place) -> Facts:
    """Nats per character of every arm, seconds of training, and the scores of drawn replies."""
    assert place.weights is not None  # ``bind`` gives it
    asked = cell.settings
    settings = ChatSettings(max_tokens=asked["tokens"], reply_tokens=asked["written"])
    numbers: Facts = {}
    rows = asked["updates"] * asked["batch"]
    training = TrainingConfig(
        steps=asked["updates"],
        effective_batch=asked["batch"],
        learning_rate=asked["rate"],
        seed=cell.seed,
        plan=Plan(effective_batch=asked["batch"], micro_batch=asked["piece"]),
    )
    config = RunConfig(model=str(place.weights), limit=rows, settings=settings, **_files(asked, place))
    prepared, _, trained = train_on(
        TASK, config, training, place.folder / "pretrained", Budget.parse("8GiB"), curve=None
    )
    held = [one for one in prepared.sources.held_out if len(one) > 1]
    held = held[:: max(1, len(held) // asked["judged"])][: asked["judged"]]
    tokenizer = prepared.model.tokenizer

    def judged(arm: str, model: nn.Module, own: Tokenizer, seconds: float) -> None:
        tally, characters = log_probability(model, own, held, settings)
        numbers[f"{arm} nats a character"], numbers[f"{arm} seconds"] = float(tally.total) / characters, seconds

    judged(PRETRAINED, trained.model, tokenizer, trained.facts["seconds"])
    numbers |= _drawn(trained.model, tokenizer, held[: asked["replied"]], settings, cell.seed)
    del trained
    model = prepared.model.build()
    judged(LOADED, model, tokenizer, 0.0)
    began = time.perf_counter()
    train_by_trainer(
        model.train(), _batches(prepared, asked, cell.seed), micro_batch=asked["piece"], learning_rate=asked["rate"],
        schedule="linear", warmup_steps=max(1, asked["updates"] // 10), weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
    )  # fmt: skip
    judged(TRAINER, model.eval(), tokenizer, time.perf_counter() - began)
    scratch = TrainingConfig(steps=LONGER * asked["updates"], effective_batch=asked["scratch_batch"], seed=cell.seed)
    config = replace(config, model="tiny", limit=asked["scratch_limit"])
    own, _, small = train_on(TASK, config, scratch, place.folder / "scratch", Budget.parse("4GiB"), curve=None)
    judged(SCRATCH, small.model, own.model.tokenizer, small.facts["seconds"])
    return numbers | {"dialogues": len(held)}


def _files(asked: Facts, place: Place) -> Facts:
    if "data" not in asked:
        return {}
    assert place.data is not None  # ``running`` refuses before
    train, held = asked["data"]
    return {"data": [place.data / train], "held_out": [place.data / held]}


def _batches(prepared: Prepared, asked: Facts, seed: int) -> list[dict[str, Tensor]]:
    """The rows that ours was trained on, a batch an update; labels at their own tokens, as transformers shifts them itself."""
    order = torch.randperm(len(prepared.rows), generator=torch.Generator().manual_seed(seed)).tolist()
    order = (order * (1 + asked["updates"] * asked["batch"] // len(order)))[: asked["updates"] * asked["batch"]]
    found = []
    for at in range(0, len(order), asked["batch"]):
        batch = prepared.batch(order[at : at + asked["batch"]])
        labels = batch["labels"]
        batch["labels"] = torch.cat([torch.full_like(labels[:, :1], IGNORED), labels[:, :-1]], 1)
        found.append(batch)
    return found


def _drawn(
    model: nn.Module, tokenizer: Tokenizer, held: Sequence[Dialogue], settings: ChatSettings, seed: int
) -> Facts:
    histories, golds = [one[:-1] for one in held], [one[-1].text for one in held]
    numbers: Facts = {}
    for name, way in WAYS.items():
        replies = reply_to(model, tokenizer, histories, settings, sampling=replace(way, seed=1000 * seed))
        scores = score_replies(replies, golds)
        numbers |= {f"{name} {what}": scores[what] for what in SCORES}
    return numbers


def _judge_dialogue(results: Pairs) -> Verdict:
    """Pretrained weights are better than from scratch, and training them better than leaving them: nats per character."""
    own = {arm: by_seed(results, f"{arm} nats a character") for arm in ARMS}
    gains = {f"{arm} over {PRETRAINED}": difference(own[arm], own[PRETRAINED]) for arm in (SCRATCH, LOADED)}
    sizes = results[0][0].settings
    read = {
        PRETRAINED: f"{sizes['updates']} × {sizes['batch']}",
        TRAINER: f"{sizes['updates']} × {sizes['batch']}",
        LOADED: "none",
        SCRATCH: f"{LONGER * sizes['updates']} × {sizes['scratch_batch']}",
    }
    rows: list[list[Given]] = [
        [
            arm,
            read[arm],
            mean(own[arm]),
            "–" if arm == PRETRAINED else difference(own[arm], own[PRETRAINED]),
            None if arm == LOADED else mean(by_seed(results, f"{arm} seconds")),
        ]
        for arm in ARMS
    ]
    columns: list[str | tuple[str, str]] = [
        "weights", "updates × dialogues", ("held-out loss", "nats a character"), ("over pretrained", "nats"),
        ("training", "seconds"),
    ]  # fmt: skip
    return decide(gains, unit="nats", columns=columns, rows=rows)


def _judge_drawing(results: Pairs) -> Verdict:
    own = {name: {what: by_seed(results, f"{name} {what}") for what in SCORES} for name in WAYS}
    k, p = own.values()
    return decide(
        {
            "BLEU-2 of top-k over top-p": difference(k["bleu_2"], p["bleu_2"]),
            "Dist-2 of top-p over top-k": difference(p["dist_2"], k["dist_2"]),
        },
        unit="share",
        columns=["drawn by", ("BLEU-2", "share"), ("Dist-2", "share"), ("repetition", "share")],
        rows=[[name, *map(mean, scores.values())] for name, scores in own.items()],
    )


def _template(key: str, sentence: str, number: str, judge: Callable[[Pairs], Verdict], *beside: str) -> Template:
    """The claims share their cells."""
    claim = Claim(
        key=key, article=7, sentence=sentence, articles_number=number, cells=_cells, measure=_measure, judge=judge
    )
    return Template(
        claim=claim,
        refuses=lambda model: None if model["kind"] == DECODER else "replies are written, and this is an encoder",
        beside=beside,
    )


TEMPLATES = (
    _template(
        KEY,
        "On pretrained weights a few dialogues give what many do not from scratch: fewer nats per character of held-out dialogues, "
        "and fewer than without training",
        "none given: it goes on from NEZHA",
        _judge_dialogue,
        "dialogue-loss-by-epoch",
    ),
    _template(
        "pretrained-drawing",
        "On pretrained weights replies drawn by top-k 5 are nearer to what was said, those by top-p 0.9 more varied",
        "none given: top-k 5 is used",
        _judge_drawing,
        "dialogue-drawing",
    ),
)
