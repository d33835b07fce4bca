"""Article 4: ALBERT's layers given weights of their own, against the shared block, from the same masked-LM checkpoint.

One ALBERT and one BERT of equal width and depth are pre-trained as masked LMs with as many updates, once. A cell then trains
three ways on the task: the ALBERT shared, the same ALBERT unshared, the BERT; data, order, updates and the new head's start are
equal and come from the seed. The curve and the score are of the same held-out examples.
The easy task is a text's label; the harder one is reading Chinese passages of few sentences that hold the answer, by exact
match: with unanswerable questions so small a model says "no answer" to everything for longer than there is time.
Where no way does better than a constant answer, nothing was learned, and the verdict says that it cannot be tested.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from torch import nn

from jieyue.budget import Budget
from jieyue.data.corpora import HELDOUT_SEED, compose
from jieyue.data.labelled import Labelled
from jieyue.data.questions import Question
from jieyue.json_values import Facts
from jieyue.report import Estimate, Picture, write_whole
from jieyue.report.amounts import Given
from jieyue.run.comparison import train_on
from jieyue.run.config import TrainingConfig
from jieyue.run.prepare import Prepared
from jieyue.tasks import RunConfig, Sources
from jieyue.tasks.classify.settings import ClassifySettings
from jieyue.tasks.read.settings import ReadSettings
from jieyue.tasks.table import task

from .claims import UNTESTED, Cell, Claim, Pairs, Place, Scale, Verdict
from .judging import decide, difference, mean
from .pretraining import masked_lm

__all__ = ["CLAIMS"]

WAYS = {"shared": ("albert-tiny", None), "unshared": ("albert-tiny", 0), "BERT": ("bert-tiny", None)}
MARGIN = 0.02  # a tie: the interval of the difference lies within two points
POINTS = 8  # of a curve
EARLY = 4  # the early score is that after a fourth of the updates
MEASURES = {"read": "exact_match", "classify": "accuracy"}
SENTIMENT = "classification/sentiment_bert4keras/sentiment.zip"
READING = {"sentences": 2, "tokens": 72}  # of a passage
SIZES: dict[tuple[str, str], Facts] = {
    ("minutes", "classify"): {"questions": 20_000, "updates": 80, "judged": 300, "tokens": 64},
    ("minutes", "read"): {"questions": 20_000, "updates": 160, "judged": 240, **READING},
    ("hour", "classify"): {"data": SENTIMENT, "updates": 320, "judged": 1000, "tokens": 64},
    ("hour", "read"): {"questions": 60_000, "updates": 560, "judged": 400, **READING},
}
RATE = 1e-3
PRETRAINING: dict[Scale, Facts] = {
    "minutes": {"updates": 200, "tokens": 64, "rate": 2e-3},
    "hour": {"updates": 240, "tokens": 64, "rate": 2e-3},
}


def _cells(key: str, name: str) -> Callable[[Scale, Sequence[int]], list[Cell]]:
    def cells(scale: Scale, seeds: Sequence[int]) -> list[Cell]:
        sizes = SIZES.get((scale, name))
        if sizes is None:
            return []
        settled = {"task": name, "pretraining": PRETRAINING[scale], "rate": RATE, **sizes}
        return [Cell(key, settled, seed) for seed in seeds]

    return cells


def _measure(cell: Cell, place: Place) -> Facts:
    """Way -> score, curve, seconds, bytes of a step, parameters; and the score of the best constant answer."""
    sizes = cell.settings
    train, held_out, texts = _files(sizes, place)
    found: Facts = {}
    for way, (preset, unshare) in WAYS.items():
        kept = place.folder / f"{way}.json"
        if not kept.is_file():
            start = _pretrained(preset, texts, sizes["pretraining"], place)
            config = RunConfig(
                model=str(start), data=(train,), held_out=(held_out,), unshare=unshare, settings=_settings(sizes)
            )
            write_whole(kept, json.dumps(_trained(config, sizes, cell.seed, place.folder / way)))
        found[way] = json.loads(kept.read_text(encoding="utf-8"))
    return found


def _pretrained(preset: str, texts: str, asked: Facts, place: Place) -> Path:
    """The masked LM that every cell of these texts begins from: beside the cells, trained by the first that needs it."""
    name = hashlib.sha256(json.dumps([preset, asked, texts]).encode()).hexdigest()[:16]
    return masked_lm(
        place.folder.parent / f"pretrained-{name}", texts, updates=asked["updates"], model=preset,
        max_tokens=asked["tokens"], learning_rate=asked["rate"],
    )  # fmt: skip


def _files(sizes: Facts, place: Place) -> tuple[Path, Path, str]:
    """Training file, held-out file, and the training texts without anything else, a line each."""
    if "data" in sizes:
        return _sentiment(sizes, place)
    paths = place.folder / "train.json", place.folder / "held-out.json"
    train = compose("train", 0, sizes["questions"], languages=("zh",), unanswerable=0.0)
    held_out = compose("heldout", HELDOUT_SEED, 8 * sizes["judged"], languages=("zh",), unanswerable=0.0)
    for path, corpus in zip(paths, (train, held_out), strict=True):
        content = _questions(corpus, sizes["sentences"]) if sizes["task"] == "read" else _topics(corpus)
        write_whole(path, json.dumps(content, ensure_ascii=False))
    return *paths, "".join(f"{entry['paragraphs'][0]['context']}\n" for entry in train["data"])


def _questions(corpus: Facts, sentences: int) -> Facts:
    """The entries whose passage has at most so many sentences."""
    return {**corpus, "data": [one for one in corpus["data"] if one["paragraphs"][0]["difficulty"] <= sentences]}


def _topics(corpus: Facts) -> list[dict[str, str]]:
    return [{"text": one["paragraphs"][0]["context"], "label": one["topic"]} for one in corpus["data"]]


def _sentiment(sizes: Facts, place: Place) -> tuple[Path, Path, str]:
    assert place.data is not None  # ``running`` refuses before
    paths = place.folder / "train.tsv", place.folder / "held-out.tsv"
    with zipfile.ZipFile(place.data / sizes["data"]) as archive:
        for path, name in zip(paths, ("sentiment.train.data", "sentiment.test.data"), strict=True):
            (member,) = (one for one in archive.namelist() if Path(one).name == name)
            path.write_bytes(archive.read(member))
    lines = paths[0].read_text(encoding="utf-8").splitlines()
    return *paths, "".join(line.split("\t")[0] + "\n" for line in lines)


def _settings(sizes: Facts) -> ClassifySettings | ReadSettings:
    if sizes["task"] == "classify":
        return ClassifySettings(max_tokens=sizes["tokens"])
    return ReadSettings(answer_slots=8, question_tokens=24, window_tokens=sizes["tokens"], overlap_tokens=16)


def _trained(config: RunConfig, sizes: Facts, seed: int, folder: Path) -> Facts:
    """One way, from its beginning alone."""
    shutil.rmtree(folder, ignore_errors=True)
    job = task(sizes["task"])

    def measured(model: nn.Module, prepared: Prepared) -> float:
        asked = prepared.sources.held_out[: sizes["judged"]]
        facts = job.score(job.answer(model, prepared.model.tokenizer, asked, prepared.settings), asked)
        return float(facts[MEASURES[job.name]])

    training = TrainingConfig(
        steps=sizes["updates"], learning_rate=sizes["rate"], seed=seed, save_steps=10_000, curriculum="none"
    )
    prepared, planned, trained = train_on(job, config, training, folder, Budget.parse("4GiB"), curve=measured)
    assert planned.plan.predicted is not None
    return {
        "score": measured(trained.model, prepared),
        "constant": _constant(prepared.sources, sizes["judged"]),
        "curve": trained.course.scores,
        "seconds": trained.facts["seconds"],
        "step_bytes": planned.plan.predicted.peak_bytes,
        "parameters": sum(p.numel() for p in trained.model.parameters()),
    }


def _constant(sources: Sources[Question] | Sources[Labelled], judged: int) -> float:
    """The share that one answer to everything gets right: the most frequent label, or the most frequent answer."""
    asked = sources.held_out[:judged]
    told = [one.golds or () if isinstance(one, Question) else [one.label] for one in asked]
    right = Counter(answer for answers in told for answer in {*answers})
    return max(right.values()) / len(asked)


def _of(results: Pairs, way: str, number: str) -> dict[int, float]:
    if number != "early":
        return {cell.seed: float(numbers[way][number]) for cell, numbers in results}
    return {cell.seed: float(numbers[way]["curve"][POINTS // EARLY - 1][1]) for cell, numbers in results}


def _judge(results: Pairs, decided: Callable[[Pairs], Mapping[str, Estimate]], border: float = 0.0) -> Verdict:
    columns: list[str | tuple[str, str]] = [
        "layers", ("score", "share"), ("score at a quarter of the updates", "share"), ("training", "seconds"),
        ("memory of an update", "bytes"), "parameters",
    ]  # fmt: skip
    rows: list[list[Given]] = [
        [way, mean(_of(results, way, "score")), mean(_of(results, way, "early")), mean(_of(results, way, "seconds")),
         mean(_of(results, way, "step_bytes")).value, f"{mean(_of(results, way, 'parameters')).value:.0f}"]
        for way in WAYS
    ]  # fmt: skip
    constant = mean(_of(results, "shared", "constant")).value
    curves = {way: _curve(results, way) for way in WAYS}
    picture = Picture.lines(
        "Score while training, mean over seeds", curves, x="update", y=("score", "share"),
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
    return {update: fmean(scores) for update, scores in points.items()}


def _ahead(results: Pairs) -> Mapping[str, Estimate]:
    names = {"score": "unshared over shared at the end", "early": "unshared over shared at a quarter of the updates"}
    return {
        name: difference(_of(results, "unshared", number), _of(results, "shared", number))
        for number, name in names.items()
    }


def _both(results: Pairs) -> Mapping[str, Estimate]:
    one, other = _of(results, "unshared", "score"), _of(results, "shared", "score")
    return {"unshared over shared": difference(one, other), "shared over unshared": difference(other, one)}


def _full(command: str) -> tuple[str, ...]:
    return tuple(f"{command} --device cuda{unshare}" for unshare in ("", " --unshare all"))


CLAIMS = (
    Claim(
        key="unsharing-easy-tie",
        article=4,
        sentence="On an easy task (a topic, or sentiment) unshared and shared ALBERT tie: within two points of accuracy",
        articles_number="test 94.35 and 94.52 (small), 94.13 and 93.78 (tiny); three runs",
        version=2,
        cells=_cells("unsharing-easy-tie", "classify"),
        measure=_measure,
        judge=lambda results: _judge(results, _both, -MARGIN),
        full=_full(
            "jieyue train classify --model voidful/albert_chinese_small --data sentiment.train.data "
            "--held-out sentiment.test.data --epochs 10 --learning-rate 1e-4"
        ),
    ),
    Claim(
        key="unsharing-hard-gain",
        article=4,
        sentence="On a harder task (reading short passages that hold the answer) unshared ALBERT ends better than shared, "
        "and is ahead early",
        articles_number="68.80 over 66.66 (small), 66.15 over 63.41 (tiny); after epoch 1 57.02 over 50.93, 48.64 over 37.47",
        version=2,
        cells=_cells("unsharing-hard-gain", "read"),
        measure=_measure,
        judge=lambda results: _judge(results, _ahead),
        full=_full("jieyue train read --model voidful/albert_chinese_small --data SOGOU+WEBQA.json --epochs 10"),
    ),
)
