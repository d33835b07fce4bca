"""Article 7: what a dialogue model learns by epoch, what the loss on every turn is worth, and how replies should be drawn.

A cell trains the preset from scratch with one loss and one seed; the same updates, rows and order for both losses. Losses are
nats a token of held-out dialogues, all turns or the last turn alone, whatever was trained on. Replies of the model that learned
from all turns are drawn for held-out histories by top-k 5 (the article's) and by top-p 0.9.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from jieyue.budget import Budget
from jieyue.decoding.sampling import Sampling
from jieyue.json_values import Facts
from jieyue.report import Picture
from jieyue.report.amounts import Given
from jieyue.run.comparison import train_on
from jieyue.run.config import TrainingConfig
from jieyue.tasks import RunConfig
from jieyue.tasks.chat.replies import log_probability, reply_to, score_replies
from jieyue.tasks.chat.settings import ChatSettings
from jieyue.tasks.table import task

from .claims import Cell, Claim, Pairs, Place, Scale, Verdict
from .judging import by_seed, decide, difference, mean

__all__ = ["CLAIMS"]

KEY = "dialogue-loss-by-epoch"
LOSSES = ("all", "last")
WAYS = {"top-k 5": Sampling(top_k=5), "top-p 0.9": Sampling(top_k=0, top_p=0.9)}
ARTICLE_LOSS = 2.83  # nats a token at the end, on what was trained on
SIZES: dict[str, Facts] = {
    "minutes": {"updates": 240, "batch": 8, "tokens": 128, "limit": 1000, "judged": 120},
    "hour": {
        "updates": 2400, "batch": 16, "tokens": 256, "limit": None, "judged": 400,
        "data": "dialogue/lccc_base/LCCC-base_valid.json.xz",
    },
}  # fmt: skip


def _cells(losses: Sequence[str]) -> Callable[[Scale, Sequence[int]], list[Cell]]:
    def cells(scale: Scale, seeds: Sequence[int]) -> list[Cell]:
        if scale not in SIZES:
            return []
        return [Cell(KEY, {"loss_on": one, **SIZES[scale]}, seed) for seed in seeds for one in losses]

    return cells


def _measure(cell: Cell, place: Place) -> Facts:
    """Losses on all turns and on the last one, the curve by epoch, and the scores of drawn replies."""
    asked = cell.settings
    settings = ChatSettings(
        max_tokens=asked["tokens"], row_tokens=asked["tokens"], loss_on=asked["loss_on"], reply_tokens=32
    )
    files = [] if place.data is None or "data" not in asked else [place.data / asked["data"]]
    config = RunConfig(model="tiny", data=files, limit=asked["limit"], settings=settings)
    training = TrainingConfig(steps=asked["updates"], effective_batch=asked["batch"], seed=cell.seed)
    prepared, _, trained = train_on(task("chat"), config, training, place.folder / "training", Budget.parse("4GiB"))
    model, tokenizer = trained.model, prepared.model.tokenizer
    held = [one for one in prepared.sources.held_out if len(one) > 1][: asked["judged"]]
    numbers: Facts = {"dialogues": len(held), "seconds": trained.facts["seconds"]}
    for part in LOSSES:
        tally, _ = log_probability(model, tokenizer, held, replace(settings, loss_on=part))
        numbers[f"loss {part}"] = float(tally.mean())
    epoch = len(prepared.rows) / asked["batch"]  # in updates
    numbers["curve"] = [(update / epoch, loss) for update, loss in trained.course.scores]
    if asked["loss_on"] == "all":
        histories, golds = [one[:-1] for one in held], [one[-1].text for one in held]
        for name, way in WAYS.items():
            drawn = replace(way, seed=1000 * cell.seed)
            replies = reply_to(model, tokenizer, histories, settings, sampling=drawn)
            scores = score_replies(replies, golds, *log_probability(model, tokenizer, held[:1], settings))
            numbers |= {f"{name} {what}": scores[what] for what in ("bleu_2", "dist_2", "repetition")}
    return numbers


def _judge_epochs(results: Pairs) -> Verdict:
    """Falls: the loss at the end lies below that of the curve's first point."""
    curves = {cell.seed: numbers["curve"] for cell, numbers in results}
    points = range(min(map(len, curves.values())))
    losses = [{seed: curve[point][1] for seed, curve in curves.items()} for point in points]
    epochs = [next(iter(curves.values()))[point][0] for point in points]
    rows: list[list[Given]] = [[f"{epoch:.1f}", mean(own), None] for epoch, own in zip(epochs, losses, strict=True)]
    rows.append(["the article, 13 epochs of 12 million dialogues, as trained", None, ARTICLE_LOSS])
    return decide(
        {f"held-out loss after {epochs[0]:.1f} epochs over that after {epochs[-1]:.1f}": difference(losses[0], losses[-1])},
        unit="nats",
        columns=["epochs", ("held-out loss", "nats"), ("the article's training loss (not comparable)", "nats")],
        rows=rows,
        lines=Picture.lines(
            "Loss on held-out dialogues",
            {"all turns": {epoch: mean(own) for epoch, own in zip(epochs, losses, strict=True)}},
            x="epochs",
            y=("loss", "nats"),
        ),
    )  # fmt: skip


def _judge_turns(results: Pairs) -> Verdict:
    own = {one: {part: by_seed(results, f"loss {part}", loss_on=one) for part in LOSSES} for one in LOSSES}
    rows: list[list[Given]] = [
        [f"{one} turn{'s' if one == 'all' else ''}", *(mean(own[one][part]) for part in LOSSES)] for one in LOSSES
    ]
    return decide(
        {"last turn's loss, trained on the last turn over trained on all": difference(own["last"]["last"], own["all"]["last"])},
        unit="nats",
        columns=["trained on", ("held-out loss, all turns", "nats"), ("last turn", "nats")],
        rows=rows,
    )  # fmt: skip


def _judge_drawing(results: Pairs) -> Verdict:
    own = {
        name: {what: by_seed(results, f"{name} {what}", loss_on="all") for what in ("bleu_2", "dist_2", "repetition")}
        for name in WAYS
    }
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


def _claim(
    key: str, sentence: str, number: str, losses: Sequence[str], judge: Callable[[Pairs], Verdict], *full: str
) -> Claim:
    """The claims share their cells: ``KEY`` names what was trained, whichever claim asks."""
    return Claim(
        key=key, article=7, sentence=sentence, articles_number=number, cells=_cells(losses), measure=_measure, judge=judge,
        full=full, version=2,
    )  # fmt: skip


CLAIMS = (
    _claim(
        KEY,
        "The loss on held-out dialogues falls with the epochs",
        "2.83 nats a token at the end, on the training data (not comparable); no held-out number",
        ("all",),
        _judge_epochs,
        "jieyue train chat --model NEZHA --data LCCC-base.json --effective-batch 256 --learning-rate 2e-5 --epochs 3 --device cuda",
    ),
    _claim(
        "dialogue-all-turns",
        "The loss on every turn of a dialogue teaches replies better than the loss on the last turn alone",
        "none given: one row instead of n for n replies",
        LOSSES,
        _judge_turns,
    ),
    _claim(
        "dialogue-drawing",
        "Replies drawn by top-k 5 are nearer to what was said, those by top-p 0.9 more varied",
        "none given: top-k 5 is used",
        ("all",),
        _judge_drawing,
    ),
)
