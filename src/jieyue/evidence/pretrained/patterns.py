"""Article 1 on a pretrained decoder: which keys can be left out? Loss under patterns of about as many keys, nothing trained."""

from __future__ import annotations

import math
from collections.abc import Sequence

from jieyue.evidence.claims import Cell, Claim, Pairs, Place, Scale, Verdict
from jieyue.evidence.judging import by_seed, decide, difference, mean
from jieyue.hf.attention_check import verify_attention
from jieyue.hf.loading import load
from jieyue.hf.row_losses import text_batches
from jieyue.json_values import Facts
from jieyue.report import Estimate
from jieyue.report.amounts import Given

from .template import Template
from .texts import WIKITEXT, texts
from .weights import DECODER

__all__ = ["TEMPLATES"]

KEY = "pretrained-patterns"
FULL = "full"
FIRST, LOCAL, SPARSE, ATROUS = "first keys and a window", "a window", "near all, far every r-th", "every r-th"
SIZES: dict[str, Facts] = {
    "minutes": {"rows": 2, "words": 50, "tokens": 64, "window": 16, "rate": 4},
    "hour": {"rows": 2, "words": 420, "tokens": 512, "window": 128, "rate": 4},
}
SIZES["hour"]["data"] = WIKITEXT


def _cells(scale: Scale, seeds: Sequence[int]) -> list[Cell]:
    return [Cell(KEY, SIZES[scale], seed) for seed in seeds] if scale in SIZES else []


def _patterns(asked: Facts) -> dict[str, str]:
    """Of at most window + 4 keys for the last query of a row."""
    window, rate = asked["window"], asked["rate"]
    return {
        FIRST: f"first(4)+local({window})",
        LOCAL: f"local({window})",
        SPARSE: f"local({window // 2})+atrous({2 * rate})",
        ATROUS: f"atrous({rate})",
    }


def _measure(cell: Cell, place: Place) -> Facts:
    assert place.weights is not None  # ``bind`` gives it
    asked = cell.settings
    model, tokenizer = load(place.weights, "causal-lm")
    batches = text_batches(model, tokenizer, texts(asked, cell.seed, place), rows=1, max_tokens=asked["tokens"])
    patterns = _patterns(asked)
    found = verify_attention(model, batches, tuple(patterns.values()))
    numbers: Facts = {"tokens": found.num_labels}
    for name, row in zip((FULL, *patterns), found.rows, strict=True):
        numbers[f"{name} loss"] = row.loss
    return numbers


def _judge(results: Pairs) -> Verdict:
    """The first keys and a window cost less than each of the others."""
    own = {name: by_seed(results, f"{name} loss") for name in (FULL, FIRST, LOCAL, SPARSE, ATROUS)}
    gains = {f"loss of {name} over {FIRST}": difference(own[name], own[FIRST]) for name in (LOCAL, SPARSE, ATROUS)}
    asked = results[0][0].settings
    shown = {FULL: "full()", **_patterns(asked)}
    rows: list[list[Given]] = [
        [
            name,
            shown[name],
            mean(values),
            _perplexity(mean(values)),
            "–" if name == FULL else _more(difference(values, own[FULL])),
        ]
        for name, values in own.items()
    ]
    columns: list[str | tuple[str, str]] = [
        "keys", "pattern", ("loss", "nats a token"), "perplexity", ("perplexity over full attention", "share"),
    ]  # fmt: skip
    return decide(gains, unit="nats", columns=columns, rows=rows)


def _perplexity(loss: Estimate) -> Estimate:
    return Estimate(math.exp(loss.value), math.exp(loss.low), math.exp(loss.high), loss.how)


def _more(gap: Estimate) -> Estimate:
    """From a difference of losses to the share by which perplexity grows."""
    return Estimate(math.expm1(gap.value), math.expm1(gap.low), math.expm1(gap.high), gap.how)


TEMPLATES = (
    Template(
        claim=Claim(
            key=KEY,
            article=1,
            sentence="Of a pretrained decoder's keys the first ones and the nearest are those to keep: untrained, they cost less than "
            "a window alone, than near all and far every r-th, and than every r-th",
            articles_number="none given: quality was not measured",
            cells=_cells,
            measure=_measure,
            judge=_judge,
        ),
        refuses=lambda model: (
            None if model["kind"] == DECODER else "the loss of the next token is compared, and this is an encoder"
        ),
    ),
)
