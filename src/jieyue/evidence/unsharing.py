"""Article 4: ALBERT's layers given weights of their own, against the shared block, from the same masked-LM checkpoint.

A cell pre-trains one ALBERT and one BERT of equal width and depth as masked LMs for as many updates, then trains three ways on
the task: the ALBERT shared, the same ALBERT unshared, the BERT. Data, order and updates are equal.
Where no way does better than a constant answer, nothing was learned, and the verdict says that it cannot be tested.
"""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jieyue.budget import Budget
from jieyue.recipes.classify import ClassifySettings
from jieyue.report import Estimate, Picture, write_whole
from jieyue.run.comparison import train_on
from jieyue.run.tasks import task
from jieyue.run.values import Course, Materials, Sources

from .claims import UNTESTED, Cell, Claim, Place, Scale, Verdict
from .judging import Pairs, decide, difference, mean
from .pretraining import masked_lm

__all__ = ["CLAIMS"]

WAYS = {"shared": ("albert-tiny", None), "unshared": ("albert-tiny", 0), "BERT": ("bert-tiny", None)}
MARGIN = 0.02  # a tie: the interval of the difference lies within two points
SENTIMENT = "classification/sentiment_bert4keras/sentiment.zip"
FIRST = {"after": 1, "of": 4}  # the curve's point that is "early": a quarter of the updates
SIZES: dict[tuple[str, str], dict[str, Any]] = {
    ("minutes", "classify"): {"pretraining": 80, "updates": 80, "limit": 2000, "tokens": 64, "rate": 5e-4},
    ("minutes", "read"): {"pretraining": 24, "updates": 24, "limit": 400, "tokens": 64, "rate": 1e-3},
    ("hour", "classify"): {"pretraining": 400, "updates": 400, "limit": None, "tokens": 64, "rate": 5e-4, "data": SENTIMENT},
    ("hour", "read"): {"pretraining": 400, "updates": 400, "limit": 12000, "tokens": 64, "rate": 1e-3},
}  # fmt: skip


def _cells(key: str, name: str) -> Callable[[Scale, Sequence[int]], list[Cell]]:
    def cells(scale: Scale, seeds: Sequence[int]) -> list[Cell]:
        sizes = SIZES.get((scale, name))
        return [Cell(key, {"task": name, **sizes}, seed) for seed in seeds] if sizes else []

    return cells


def _measure(cell: Cell, place: Place) -> Mapping[str, Any]:
    """Way -> score, curve, seconds, bytes of a step, parameters; and the score of the best constant answer."""
    sizes: Mapping[str, Any] = cell.settings
    train, held_out, texts = _files(sizes, place)
    found: dict[str, Any] = {}
    for way, (preset, unshare) in WAYS.items():
        kept = place.folder / f"{way}.json"
        if not kept.is_file():
            start = masked_lm(
                place.folder / preset, texts, updates=sizes["pretraining"], model=preset, max_tokens=sizes["tokens"],
                seed=cell.seed, limit=sizes["limit"],
            )  # fmt: skip
            materials = Materials(
                model=str(start), data=train, held_out=held_out, limit=sizes["limit"], unshare=unshare,
                settings=_settings(sizes, cell.seed),
            )  # fmt: skip
            write_whole(kept, json.dumps(_trained(materials, sizes, cell.seed, place.folder / way)))
        found[way] = json.loads(kept.read_text(encoding="utf-8"))
    return found


def _files(sizes: Mapping[str, Any], place: Place) -> tuple[tuple[Path, ...], tuple[Path, ...], str]:
    """Training files, held-out files, plain text; all empty for what ships."""
    if "data" not in sizes:
        return (), (), ""
    assert place.data is not None
    train, held_out = place.folder / "train.tsv", place.folder / "held-out.tsv"
    with zipfile.ZipFile(place.data / sizes["data"]) as archive:
        for path, name in ((train, "sentiment.train.data"), (held_out, "sentiment.test.data")):
            (member,) = (one for one in archive.namelist() if Path(one).name == name)
            path.write_bytes(archive.read(member))
    lines = train.read_text(encoding="utf-8").splitlines()
    return (train,), (held_out,), "".join(line.split("\t")[0] + "\n" for line in lines)


def _settings(sizes: Mapping[str, Any], seed: int) -> Any:
    if sizes["task"] == "classify":
        return ClassifySettings(max_tokens=sizes["tokens"])
    return task("read").settings(Materials(model="albert-tiny"), seed)


def _trained(materials: Materials, sizes: Mapping[str, Any], seed: int, folder: Path) -> dict[str, Any]:
    job = task(sizes["task"])
    curriculum = "1:0.22,2:0.42" if job.recipe.name == "read" else None
    course = Course(
        steps=sizes["updates"], learning_rate=sizes["rate"], seed=seed, save_steps=10_000, curriculum=curriculum
    )
    prepared, planned, trained, _ = train_on(job, materials, course, folder, Budget.parse("4GiB"))
    model: Any = trained.trainer.model
    settings, _ = job.fitted(prepared, model)
    prepared = replace(prepared, settings=settings)
    judged = job.judge(model, prepared.model.tokenizer, prepared.sources, settings)
    assert planned.plan.predicted is not None
    return {
        "score": next(iter(job.numbers(judged).values())),
        "constant": _constant(job.recipe.name, prepared.sources),
        "curve": trained.curve,
        "seconds": trained.facts["seconds"],
        "step_bytes": planned.plan.predicted.peak_bytes,
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def _constant(name: str, sources: Sources) -> float:
    """The share that one answer to everything gets right: the most frequent label, or "no answer"."""
    if name == "classify":
        return max(Counter(one.label for one in sources.held_out).values()) / len(sources.held_out)
    empty = [not any(passage.spans for passage in question.passages) for question in sources.held_out]
    return sum(empty) / len(empty)


def _of(results: Pairs, way: str, number: str) -> dict[int, float]:
    if number != "early":
        return {cell.seed: float(numbers[way][number]) for cell, numbers in results}
    found = {}
    for cell, numbers in results:
        curve = numbers[way]["curve"]
        found[cell.seed] = float(curve[max(0, len(curve) * FIRST["after"] // FIRST["of"] - 1)][1])
    return found


def _judge(results: Pairs, decided: Callable[[Pairs], Mapping[str, Estimate]], border: float = 0.0) -> Verdict:
    columns: list[str | tuple[str, str]] = [
        "layers", ("score", "share"), ("score at a quarter of the updates", "share"), ("training", "seconds"),
        ("memory of an update", "bytes"), "parameters",
    ]  # fmt: skip
    rows = [
        [way, mean(_of(results, way, "score")), mean(_of(results, way, "early")), mean(_of(results, way, "seconds")),
         mean(_of(results, way, "step_bytes")).value, f"{mean(_of(results, way, 'parameters')).value:.0f}"]
        for way in WAYS
    ]  # fmt: skip
    constant = mean(_of(results, "shared", "constant")).value
    curves = {way: _curve(results, way) for way in WAYS}
    picture = Picture.lines(
        "Score on examples set aside, mean over seeds", curves, x="update", y=("score", "share"),
        rules={"one answer to everything": constant},
    )  # fmt: skip
    best = max((mean(_of(results, way, "score")) for way in ("shared", "unshared")), key=lambda one: one.low)
    if best.low <= constant:
        why = f"neither ALBERT learned the task: {best.value:.1%}, and one answer to everything gets {constant:.1%}"
        return Verdict(UNTESTED, why, columns, rows, picture)
    return decide(decided(results), border, unit="share", columns=columns, rows=rows, lines=picture)


def _curve(results: Pairs, way: str) -> dict[float, float]:
    points: dict[float, list[float]] = {}
    for _, numbers in results:
        for update, score in numbers[way]["curve"]:
            points.setdefault(update, []).append(score)
    return {update: sum(scores) / len(scores) for update, scores in points.items()}


def _ahead(results: Pairs) -> Mapping[str, Estimate]:
    names = {"score": "unshared over shared at the end", "early": "unshared over shared at a quarter of the updates"}
    return {
        name: difference(_of(results, "unshared", number), _of(results, "shared", number))
        for number, name in names.items()
    }


def _both(results: Pairs) -> Mapping[str, Estimate]:
    one, other = _of(results, "unshared", "score"), _of(results, "shared", "score")
    return {"unshared over shared": difference(one, other), "shared over unshared": difference(other, one)}


CLAIMS = (
    Claim(
        key="unsharing-easy-tie",
        article=4,
        sentence="On an easy task (sentiment) unshared and shared ALBERT tie: within two points of accuracy",
        articles_number="test 94.35 and 94.52 (small), 94.13 and 93.78 (tiny); three runs",
        cells=_cells("unsharing-easy-tie", "classify"),
        measure=_measure,
        judge=lambda results: _judge(results, _both, -MARGIN),
    ),
    Claim(
        key="unsharing-hard-gain",
        article=4,
        sentence="On a harder task (reading) unshared ALBERT ends better than shared, and is ahead early",
        articles_number="68.80 over 66.66 (small), 66.15 over 63.41 (tiny); after epoch 1 57.02 over 50.93, 48.64 over 37.47",
        cells=_cells("unsharing-hard-gain", "read"),
        measure=_measure,
        judge=lambda results: _judge(results, _ahead),
    ),
)
