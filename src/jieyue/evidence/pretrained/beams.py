"""Article 5 on a pretrained decoder: it was taught on true words alone; how often does a wider beam leave the right text?

Texts are cut after their first words; the model goes on with one hypothesis and with several. A wider beam finds texts of at
least the same probability; the claim is that some of them are worse: fewer of the words that the text really goes on with.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import torch

from jieyue.decoding.search import beam
from jieyue.evidence.claims import Cell, Claim, Pairs, Place, Scale, Verdict
from jieyue.evidence.judging import by_seed, decide, difference, mean
from jieyue.hf.loading import load
from jieyue.hf.steps import steps
from jieyue.json_values import Facts
from jieyue.report.amounts import Given
from jieyue.tasks.batches import evaluating

from .template import Template
from .texts import WIKITEXT, texts
from .weights import DECODER

__all__ = ["TEMPLATES", "share_of_right"]

KEY = "pretrained-wider-beam"
WIDTHS = (1, 4)
SIZES: dict[str, Facts] = {
    "minutes": {"rows": 8, "words": 40, "read": 20, "written": 8},
    "hour": {"rows": 20, "words": 80, "read": 32, "written": 12, "data": WIKITEXT},
}


def _cells(scale: Scale, seeds: Sequence[int]) -> list[Cell]:
    return [Cell(KEY, SIZES[scale], seed) for seed in seeds] if scale in SIZES else []


def _measure(cell: Cell, place: Place) -> Facts:
    """By width: log p and the share of right tokens; the share of texts that the wider beam finds likelier and worse, or better."""
    assert place.weights is not None  # ``bind`` gives it
    asked = cell.settings
    model, tokenizer = load(place.weights, "causal-lm")
    read, written = asked["read"], asked["written"]
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts(asked, cell.seed, place)]
    rows = [row for row in rows if len(row) >= read + written]
    true = [row[read : read + written] for row in rows]
    chances: dict[int, list[float]] = {}
    right: dict[int, list[float]] = {}
    with evaluating(model):
        for width in WIDTHS:
            found = beam(steps(model), torch.tensor([row[:read] for row in rows]), width=width, max_tokens=written)
            chances[width] = [best[0].log_probability for best in found]
            right[width] = [share_of_right(best[0].tokens, own) for best, own in zip(found, true, strict=True)]
    one, wide = WIDTHS
    pairs = list(zip(right[one], right[wide], chances[one], chances[wide], strict=True))
    numbers: Facts = {"texts": len(rows)}
    for width in WIDTHS:
        numbers[f"{width} log p"], numbers[f"{width} right"] = (statistics.mean(own[width]) for own in (chances, right))
    numbers["likelier and worse"] = statistics.mean(w < o and cw > co for o, w, co, cw in pairs)
    numbers["likelier and better"] = statistics.mean(w > o and cw > co for o, w, co, cw in pairs)
    return numbers


def share_of_right(said: Sequence[int], true: Sequence[int]) -> float:
    """Share of the true tokens, each counted as often as it stands there, that were said, in any order."""
    remaining = list(said)
    hits = 0
    for token in true:
        if token in remaining:
            remaining.remove(token)
            hits += 1
    return hits / len(true)


def _judge(results: Pairs) -> Verdict:
    """It happens: the share of texts that a wider beam finds likelier and worse lies above 0."""
    one, wide = WIDTHS
    worse, better = (by_seed(results, f"likelier and {how}") for how in ("worse", "better"))
    rows: list[list[Given]] = [
        [f"{width}", mean(by_seed(results, f"{width} log p")), mean(by_seed(results, f"{width} right"))]
        for width in WIDTHS
    ]
    rows.append(
        [
            f"{wide} over {one}",
            *(
                difference(by_seed(results, f"{wide} {what}"), by_seed(results, f"{one} {what}"))
                for what in ("log p", "right")
            ),
        ]
    )
    verdict = decide(
        {f"texts that {wide} hypotheses find likelier than {one}, and worse": mean(worse)},
        unit="share",
        columns=["hypotheses", ("log p of what is written", "nats"), ("of the true words", "share")],
        rows=rows,
    )
    told = mean(better)
    why = f"{verdict.why}; likelier and better: {100 * told.value:.1f}% [{100 * told.low:.1f}%, {100 * told.high:.1f}%]"
    return Verdict(verdict.word, why, verdict.columns, verdict.rows)


TEMPLATES = (
    Template(
        claim=Claim(
            key=KEY,
            article=5,
            sentence="A pretrained decoder, taught on true words alone, lets a wider beam leave the right text for a wrong one of "
            "higher probability",
            articles_number="(a, b) 0.33 with one hypothesis, (c, d) 0.36 with two",
            cells=_cells,
            measure=_measure,
            judge=_judge,
        ),
        refuses=lambda model: None if model["kind"] == DECODER else "texts are written on, and this is an encoder",
        beside=("wider-beam-can-be-worse",),
    ),
)
