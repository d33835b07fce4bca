"""Article 2: an answer read in one masked forward pass loses nothing against one that is written token by token, and is faster.

A cell is one seed: the three readers on the same backbone, questions, updates and effective batch, judged on the same held-out
questions; then timed in the same process, in turns, each answering the same questions. Writing is timed with a cache of keys and
values, and without one, as in the article's code. Speeds are ratios: the machine's own speed and load cancel, mostly.
Both scales take the corpus that ships: CMRC 2018's ten thousand questions teach a model without pre-training next to nothing,
also with 20,000 composed ones beside them (1,000 updates: no reader above .3 % of Final), and where none reads nothing is compared.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial

from torch import nn

from jieyue.budget import Budget
from jieyue.data.questions import Question
from jieyue.data.tokenizer import Tokenizer
from jieyue.hf.steps import rereading
from jieyue.json_values import Facts
from jieyue.report import Estimate
from jieyue.report.amounts import Given
from jieyue.run.comparison import train_on
from jieyue.run.config import TrainingConfig
from jieyue.run.prepare import Prepared
from jieyue.tasks import RunConfig
from jieyue.tasks.read import prefix as writing
from jieyue.tasks.read.reader import Answer
from jieyue.tasks.read.settings import ReadSettings
from jieyue.tasks.read.task import READERS, TASK
from jieyue.timer import take_turns

from .claims import HOLDS, UNTESTED, Cell, Claim, Pairs, Place, Scale, Verdict
from .judging import by_seed, difference, factor, mean, side, together

__all__ = ["CLAIMS"]

KEY = "masked-reading"
MARGIN = 0.02  # of Final: what "loses nothing" may hide
LEARNED = 0.05  # of Final: below it no reader reads, and equal scores compare nothing
REPEATS = 3
SIZES: dict[str, Facts] = {
    "minutes": {
        "model": "tiny",
        "questions": 20_000,
        "updates": 600,
        "judged": 600,
        "timed": 96,
        "curriculum": "1:0.5",
    },
    "hour": {"model": "tiny", "updates": 3000, "judged": 1000, "timed": 96},
}
LENGTHS: Facts = {"answer_slots": 8, "question_tokens": 24, "window_tokens": 96, "overlap_tokens": 16}


def _cells(scale: Scale, seeds: Sequence[int]) -> list[Cell]:
    return [Cell(KEY, {"scale": scale, **SIZES[scale]}, seed) for seed in seeds] if scale in SIZES else []


def _measure(cell: Cell, place: Place) -> Facts:
    """Final, exact match and F1 of each reader; questions a second of each, and of writing without a cache."""
    wanted = cell.settings
    numbers: Facts = {}
    ways: dict[str, Callable[[Sequence[Question]], Sequence[Answer]]] = {}
    asked: Sequence[Question] = ()
    for name in READERS:
        prepared, model, settings = _trained(name, cell, place)
        tokenizer = prepared.model.tokenizer
        questions = prepared.sources.held_out[: wanted["judged"]]
        facts = TASK.score(TASK.answer(model, tokenizer, questions, settings), questions)
        numbers |= {f"{name} {what}": facts[what] for what in ("final", "exact_match", "f1")}
        for part in ("answerable", "unanswerable"):
            if "exact_match" in facts.get(part, {}):  # a file may have no such question
                numbers[f"{name} {part}"] = facts[part]["exact_match"]
        asked = questions[: wanted["timed"]]
        ways[name] = partial(_answers, READERS[name].answer, model, tokenizer, settings)
        if name == "prefix":
            plain = partial(writing.answer, make_step=rereading)
            ways["prefix, no cache"] = partial(_answers, plain, model, tokenizer, settings)
    seconds = take_turns({name: partial(way, asked) for name, way in ways.items()}, REPEATS)
    return numbers | {f"{name} per_second": len(asked) / statistics.median(own) for name, own in seconds.items()}


def _answers(
    way: Callable[..., list[Answer]],
    model: nn.Module,
    tokenizer: Tokenizer,
    settings: ReadSettings,
    asked: Sequence[Question],
) -> list[Answer]:
    return way(model, tokenizer, asked, settings)


def _trained(name: str, cell: Cell, place: Place) -> tuple[Prepared, nn.Module, ReadSettings]:
    """A trained reader; an interrupted training goes on where it was."""
    wanted = cell.settings
    settings = ReadSettings(reader=name, seed=cell.seed, **LENGTHS)
    config = RunConfig(model=wanted["model"], settings=settings, limit=wanted.get("questions"))
    training = TrainingConfig(
        steps=wanted["updates"], effective_batch=32, seed=cell.seed, curriculum=wanted.get("curriculum")
    )
    prepared, _, trained = train_on(TASK, config, training, place.folder / name, Budget.parse("3GiB"), curve=None)
    return prepared, trained.model, settings.fitted(prepared.model.positions)


def _judge(results: Pairs) -> Verdict:
    """Holds where Final is not lower by more than the margin, and the speed is higher than with a cache; both by intervals."""
    own = {name: by_seed(results, f"{name} final") for name in READERS}
    speed = {name: by_seed(results, f"{name} per_second") for name in (*READERS, "prefix, no cache")}
    gain = difference(own["masked"], own["prefix"])
    times = factor(speed["masked"], speed["prefix"])
    plain = factor(speed["masked"], speed["prefix, no cache"])
    span = difference(own["masked"], own["span"])
    rows: list[list[Given]] = []
    for name, words in {
        "masked": "masked, one pass",
        "prefix": "written, with a cache",
        "prefix, no cache": "written, without a cache",
        "span": "span head, one pass",
    }.items():
        quality = name.removesuffix(", no cache")
        article = {"masked": 0.77447, "prefix, no cache": 0.76988}.get(name)
        rows.append(
            [words, mean(own[quality]), mean(by_seed(results, f"{quality} exact_match")),
             mean(by_seed(results, f"{quality} f1")), 1.0 if name == "masked" else
             factor(speed[name], speed["masked"]), "not measured" if article is None else f"{article:.3f}",
             {"masked": "12", "prefix, no cache": "2"}.get(name, "")]
        )  # fmt: skip
    columns: list[str | tuple[str, str]] = ["reader", ("Final", "share"), ("exact match", "share"), ("F1", "share"),
        "speed, masked = 1", "the article's Final", "the article's questions/s"]  # fmt: skip
    best = max(mean(scores).value for scores in own.values())
    if best < LEARNED:
        why = f"no reader learned to read: the best Final is {best:.1%}, and below {LEARNED:.0%} nothing is compared"
        return Verdict(UNTESTED, why, columns, rows)
    good, fast = side(gain, -MARGIN), side(times, 1)
    why = (
        f"Final over the written {_points(gain)}, needs more than −{MARGIN:g}: {good}; "
        f"{_times(times)} as many questions a second as with a cache{'' if fast == HOLDS else ' (not shown to be more)'}, "
        f"{_times(plain)} without one; Final over the span head {_points(span)}"
    )
    return Verdict(together([good, fast]), why, columns, rows)


def _points(gain: Estimate) -> str:
    return f"{gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"


def _times(times: Estimate) -> str:
    return f"{times.value:.2f} [{times.low:.2f}, {times.high:.2f}] times"


CLAIMS = (
    Claim(
        key=KEY,
        article=2,
        sentence=f"Reading in one masked pass loses no more than {MARGIN:g} of Final against writing the answer token by token, "
        "and is faster, also where the writer keeps its keys and values",
        articles_number="Final 0.774 against 0.770, 12 against 2 questions/s (one run each, BERT base, no cache)",
        cells=_cells,
        measure=_measure,
        judge=_judge,
        full=(
            "jieyue train read --reader masked --model bert-base-chinese --data SOGOU+WEBQA.json --device cuda --epochs 10",
            "jieyue train read --reader span --model bert-base-chinese --data SOGOU+WEBQA.json --device cuda --epochs 10",
            "jieyue train read --reader prefix --model bert-base-chinese --data SOGOU+WEBQA.json --device cuda --epochs 8",
        ),
    ),
)
