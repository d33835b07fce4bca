"""Article 5: remedies for exposure bias make written titles better, measured at beam widths 1, 2 and 3.

A small masked LM is pre-trained on the sources alone (``train mlm``), once; every arm fine-tunes a copy of it (``train
title``) with the same updates, and each seed draws another order and other replacements. Scores are the article's: by
characters, ROUGE F1 and sentence BLEU, means over held-out titles. ``minutes`` takes the corpus that ships and starts from
weights whose attention copies; ``hour`` takes Chinese abstracts (CSL), without any pair that stands among the judged ones.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from jieyue.budget import Budget
from jieyue.data.titles import Pair, read_titles
from jieyue.decoding.search import beam
from jieyue.json_values import Facts
from jieyue.metrics.intervals import student
from jieyue.report import Picture, write_whole
from jieyue.report.amounts import Given
from jieyue.run.comparison import train_on
from jieyue.run.config import TrainingConfig
from jieyue.tasks import RunConfig
from jieyue.tasks.title.exposure import measure_exposure
from jieyue.tasks.title.settings import TitleSettings
from jieyue.tasks.title.task import TASK, score_titles
from jieyue.tasks.title.writing import Title
from jieyue.text import folded
from jieyue.training.remedies.texts import parse_remedy

from . import penalties
from .claims import FAILS, HOLDS, Cell, Claim, Pairs, Place, Scale, Verdict
from .judging import by_seed, decide, difference, mean
from .pretraining import masked_lm

__all__ = ["CLAIMS"]

KEY = "title-remedies"
WIDTHS = (1, 2, 3)
SCORES = ("rouge_l", "rouge_1", "rouge_2", "bleu")
EXPOSURE_PAIRS = 100
ARMS = {
    "baseline": "",
    "replacement, target": "replace_tokens(0.3)",
    "replacement, sequence": "replace_tokens(0.3, pool='sequence')",
    "gradient penalty": "penalize_gradient(0.0625)",  # the article's ε = 1 at its batch of 16
    "FGM": "fgm(0.5)",
    "scheduled sampling": "sample_scheduled(0.25)",
}
BASELINE, SEQUENCE, PENALTY = "baseline", "replacement, sequence", "gradient penalty"
ARTICLE = {  # ROUGE-L on CSL at beam 1, 2, 3; the replaced tokens of its table come from the whole sequence
    BASELINE: (0.6381, 0.6444, 0.6475), SEQUENCE: (0.6444, 0.6504, 0.6515), PENALTY: (0.6541, 0.6594, 0.6610)
}  # fmt: skip
TRAINING = ["title/csl_clge/train.tsv.xz", "title/csl_clge/dev.tsv.xz",
            "title/csl_clge_2019/val.tsv.xz", "title/csl_clge_2019/test.tsv.xz"]  # fmt: skip
JUDGED = "title/csl_clge/test.tsv.xz"
AT_SCALE: dict[str, Facts] = {
    "minutes": {"updates": 250, "batch": 16, "learning_rate": 1e-3, "source_tokens": 96, "limit": 3000, "judged": 100},
    "hour": {
        "data": [*TRAINING, JUDGED], "pretraining": 2000, "updates": 750, "batch": 16, "learning_rate": 1e-3,
        "source_tokens": 128, "judged": 250,
    },
}  # fmt: skip


def _cells(scale: Scale, seeds: Sequence[int]) -> list[Cell]:
    if scale == "full":
        return []
    arms = ARMS if scale == "hour" else (BASELINE, SEQUENCE, PENALTY)
    return [Cell(KEY, {"arm": arm, "remedy": ARMS[arm], **AT_SCALE[scale]}, seed) for seed in seeds for arm in arms]


def _measure(cell: Cell, place: Place) -> Facts:
    """One arm with one seed: trained, and its titles at every width; the exposure gap; what needs no learning."""
    asked = cell.settings
    config = _config(asked, place)
    remedies = (parse_remedy(asked["remedy"]),) if asked["remedy"] else ()
    training = TrainingConfig(
        steps=asked["updates"], effective_batch=asked["batch"], learning_rate=asked["learning_rate"], seed=cell.seed,
        remedies=remedies,
    )  # fmt: skip
    prepared, _, trained = train_on(TASK, config, training, place.folder / "training", Budget.parse("4GiB"))
    model, tokenizer, settings = (
        trained.model,
        prepared.model.tokenizer,
        TASK.settings_class.from_dict(prepared.settings.to_dict()),
    )
    pairs = prepared.sources.held_out[: asked["judged"]]
    numbers: Facts = {
        "steps": trained.facts["steps"],
        "seconds": trained.facts["seconds"],
        "pairs": len(pairs),
    }
    for width in WIDTHS:
        written = TASK.answer(model, tokenizer, pairs, replace(settings, beams=width))
        numbers |= {f"{name} {width}": value for name, value in _scores(written, pairs).items()}
    numbers["exposure"] = measure_exposure(model, tokenizer, pairs[:EXPOSURE_PAIRS], settings)
    learned = prepared.sources.train
    length = round(sum(len(one.title) for one in learned) / len(learned))
    others = [learned[number % len(learned)].title for number in range(len(pairs))]
    numbers["beginning"] = _scores([pair.source[:length] for pair in pairs], pairs)
    numbers["another title"] = _scores(others, pairs)
    return numbers


def _scores(written: Sequence[Title | str], pairs: Sequence[Pair]) -> dict[str, float]:
    scores = score_titles(written, pairs)
    return {name: float(scores[f"{name}_characters"]) for name in SCORES}


def _config(asked: Facts, place: Place) -> RunConfig:
    """The shipped corpus and a preset, or files written beside the cell and a model pre-trained on their sources."""
    settings = TitleSettings(source_tokens=asked["source_tokens"])
    if "data" not in asked:
        return RunConfig(model="tiny", settings=settings, limit=asked["limit"])
    assert place.data is not None  # ``running`` refuses before
    files = [place.data / name for name in asked["data"]]
    judged, _ = read_titles(files[-1])
    known = {folded(text) for pair in judged for text in (pair.source, pair.title)}
    pairs, _ = read_titles(files[:-1])
    training = [pair for pair in dict.fromkeys(pairs) if not {folded(pair.source), folded(pair.title)} & known]
    paths = [place.folder / "training.tsv", place.folder / "judged.tsv"]
    for path, own in zip(paths, (training, judged), strict=True):
        write_whole(path, "".join(f"{pair.title}\t{pair.source}\n" for pair in own))
    sources = "".join(f"{pair.source}\n" for pair in training)
    name = hashlib.sha256(f"{asked['pretraining']}\n{sources}".encode()).hexdigest()[:16]
    model = masked_lm(  # beside the cells: every arm and seed begins from it
        place.folder.parent / f"pretrained-{name}", sources, updates=asked["pretraining"], learning_rate=2e-3
    )
    return RunConfig(model=str(model), data=paths[:1], held_out=paths[1:], settings=settings)


def _judge(results: Pairs) -> Verdict:
    """Holds where replacement (the pool of the article's table) and the penalty gain in ROUGE-L at every width."""
    found = {arm: {w: by_seed(results, f"rouge_l {w}", arm=arm) for w in WIDTHS} for arm in _arms(results)}
    base = found[BASELINE]
    gains = {arm: {w: difference(own[w], base[w]) for w in WIDTHS} for arm, own in found.items() if arm != BASELINE}
    rows: list[list[Given]] = []
    for arm, own in found.items():
        exposure = [numbers["exposure"] for cell, numbers in results if cell.settings["arm"] == arm]
        gap = student([_gap(one) for one in exposure])
        printed = " · ".join(f"{100 * one:.2f}" for one in ARTICLE[arm]) if arm in ARTICLE else "none"
        rows.append(
            [arm, *(mean(own[w]) for w in WIDTHS), *(gains[arm][w] if arm in gains else "–" for w in WIDTHS),
             *(mean(by_seed(results, f"{name} 3", arm=arm)) for name in SCORES[1:]), gap, printed]
        )  # fmt: skip
    first = results[0][1]
    for name, words in (("beginning", "the source's beginning"), ("another title", "a title of another")):
        scores = first[name]
        rows.append([words, *[scores["rouge_l"]] * 3, *["–"] * 3, *(scores[one] for one in SCORES[1:]), "–", "none"])
    columns: list[str | tuple[str, str]] = [
        "arm", *((f"ROUGE-L, beam {w}", "share") for w in WIDTHS), *((f"gain, beam {w}", "share") for w in WIDTHS),
        ("ROUGE-1, beam 3", "share"), ("ROUGE-2, beam 3", "share"), ("BLEU, beam 3", "share"), ("exposure gap", "share"),
        "the article's ROUGE-L, %",
    ]  # fmt: skip
    claimed = {f"{arm}, beam {w}": gains[arm][w] for arm in (SEQUENCE, PENALTY) for w in WIDTHS}
    return decide(claimed, unit="share", columns=columns, rows=rows, lines=_lines(results))


def _gap(exposure: Facts) -> float:
    """Right tokens after true words minus those after the model's own, over the places that titles reach."""
    count = sum(exposure["count"])
    pairs = zip(exposure["gold"], exposure["own"], exposure["count"], strict=True)
    return math.fsum((gold - own) * n for gold, own, n in pairs) / count


def _lines(results: Pairs) -> Picture:
    curves = {}
    for arm in _arms(results):
        seeds = [numbers["exposure"]["beams"] for cell, numbers in results if cell.settings["arm"] == arm]
        curves[arm] = {int(width): student([one[width]["rouge_l"] for one in seeds]) for width in seeds[0]}
    return Picture.lines("ROUGE-L by beam width", curves, x="hypotheses", y=("ROUGE-L", "share"))


def _arms(results: Pairs) -> list[str]:
    return list(dict.fromkeys(str(cell.settings["arm"]) for cell, _ in results))


def _measure_steps(cell: Cell, place: Place) -> Facts:
    """The article's two steps, a or c, then b or d, searched with one hypothesis and with two; 4 ends."""
    after = {0: {1: 0.6, 3: 0.4}, 1: {2: 0.55, 4: 0.45}, 3: {2: 0.1, 4: 0.9}}  # a=1 b=2 c=3 d=4

    def step(tokens: torch.Tensor, state: _NoState | None) -> tuple[torch.Tensor, _NoState]:
        rows = [after.get(int(row), {5: 1.0}) for row in tokens.reshape(len(tokens), -1)[:, -1]]
        chances = torch.tensor([[row.get(token, 0.0) for token in range(6)] for row in rows], dtype=torch.float64)
        return chances.log(), _NoState()

    prompt = torch.tensor([[0]])
    found = {}
    for width in (1, 2):
        best = beam(step, prompt, width=width, stop=[5], max_tokens=3)[0][0]
        found[str(width)] = {
            "text": "".join("-abcd"[token] for token in best.tokens),
            "p": math.exp(best.log_probability),
        }
    return found


class _NoState:
    """What the two steps remember: nothing."""

    def reorder(self, index: torch.Tensor) -> None:
        """Rows change places; there is nothing to change."""


def _judge_steps(results: Pairs) -> Verdict:
    found = results[0][1]
    wanted = {"1": ("ab", 0.33), "2": ("cd", 0.36)}
    right = all(found[w]["text"] == text and abs(found[w]["p"] - p) < 1e-9 for w, (text, p) in wanted.items())
    rows = [[w, f"{text} {p:g}", f"{found[w]['text']} {found[w]['p']:.6f}"] for w, (text, p) in wanted.items()]
    why = "one hypothesis finds (a, b), two find (c, d)" if right else "the search finds other texts"
    return Verdict(HOLDS if right else FAILS, why, ["hypotheses", "the article", "ours"], rows)


CLAIMS = (
    Claim(
        key="wider-beam-can-be-worse",
        article=5,
        sentence="After teacher forcing a wider beam can leave the right text for a wrong one of higher probability",
        articles_number="(a, b) 0.33 with one hypothesis, (c, d) 0.36 with two",
        cells=lambda scale, seeds: [Cell("wider-beam-can-be-worse", {}, 0)],
        measure=_measure_steps,
        judge=_judge_steps,
        certain=True,
    ),
    Claim(
        key=KEY,
        article=5,
        sentence="Random replacement of what the decoder reads, and a gradient penalty, each make titles better at beam 1, 2, 3",
        articles_number="ROUGE-L on CSL 63.8 / 64.4 / 64.8; replacement +0.6 / +0.6 / +0.4; penalty +1.6 / +1.5 / +1.4 (2 runs)",
        cells=_cells,
        measure=_measure,
        judge=_judge,
        full=(
            "jieyue compare title --model hfl/chinese-bert-wwm --data train.tsv --held-out test.tsv --effective-batch 16 "
            "--epochs 20 --learning-rate 1e-5 --seeds 3 --device cuda",
        ),
    ),
    *penalties.CLAIMS,
)
