"""Article 8 on pretrained weights: the entropies that linear maps make of real queries and keys, and what a band does for a map.

The model runs as it is loaded; its own q and k give the weights of softmax and of every map (``hf.attention_check``). Where the
model writes text, each takes the place of its attention, untrained, and the loss of the same rows is compared.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from jieyue.evidence.claims import Cell, Claim, Pairs, Place, Scale, Verdict
from jieyue.evidence.judging import by_seed, decide, difference, mean
from jieyue.hf.attention_check import verify_attention
from jieyue.hf.loading import load
from jieyue.hf.row_losses import text_batches
from jieyue.json_values import Facts
from jieyue.report.amounts import Given

from .template import Template
from .texts import WIKITEXT, texts
from .weights import DECODER, ENCODER

__all__ = ["TEMPLATES"]

KEY = "pretrained-entropies"
SOFTMAX, UNIFORM = "softmax", "uniform"
MAPS = {
    ENCODER: ("linear(elu)", "linear(softmax)", "linear(cosine)"),
    DECODER: (
        "linear(elu)",
        "linear(relu)",
        "linear(cosine)",
    ),  # linear(softmax) normalises over positions: it is not causal
}
BANDED = ("linear(elu, window=16)", "local(16)+linear(elu)")
MIDDLE = 0.5  # of the way from softmax's entropy to that of uniform weights: what "nearly uniform" means
SIZES: dict[str, Facts] = {
    "minutes": {"rows": 2, "words": 50, "tokens": 64},
    "hour": {"rows": 3, "words": 170, "tokens": 192, "data": WIKITEXT},
}


def _cells(scale: Scale, seeds: Sequence[int]) -> list[Cell]:
    return [Cell(KEY, SIZES[scale], seed) for seed in seeds] if scale in SIZES else []


def _measure(cell: Cell, place: Place) -> Facts:
    """Mean entropy over layers, of the maps and of those with a band; with labels the loss of each in place of attention."""
    assert place.weights is not None  # ``bind`` gives it
    asked = cell.settings
    model, tokenizer = load(place.weights, "causal-lm" if asked["model"]["kind"] == DECODER else None)
    batches = text_batches(model, tokenizer, texts(asked, cell.seed, place), rows=2, max_tokens=asked["tokens"])
    found = verify_attention(model, batches, (*MAPS[asked["model"]["kind"]], *BANDED))
    numbers: Facts = {f"{UNIFORM} entropy": statistics.mean(found.uniform)}
    for row in found.rows:
        numbers[f"{row.name} entropy"] = statistics.mean(row.entropies)
        if row.loss is not None:
            numbers[f"{row.name} loss"] = row.loss
    return numbers


def _judge_entropies(results: Pairs) -> Verdict:
    """Each map's entropy is nearer to that of uniform weights than to softmax's."""
    maps = _maps(results)
    own = {name: by_seed(results, f"{name} entropy") for name in (SOFTMAX, *maps, *BANDED, UNIFORM)}
    border = {seed: value + MIDDLE * (own[UNIFORM][seed] - value) for seed, value in own[SOFTMAX].items()}
    gains = {f"entropy of {case} over the middle": difference(own[case], border) for case in maps}
    rows: list[list[Given]] = [[name, mean(values), difference(values, own[SOFTMAX])] for name, values in own.items()]
    columns: list[str | tuple[str, str]] = [
        "weights",
        ("entropy on the model's own q and k", "nats"),
        ("over softmax", "nats"),
    ]
    return decide(gains, unit="nats", columns=columns, rows=rows)


def _judge_band(results: Pairs) -> Verdict:
    """A band helps: the loss of the bare elu map over that of the map within a band, and with softmax in it."""
    maps = _maps(results)
    own = {name: by_seed(results, f"{name} loss") for name in (SOFTMAX, *maps, *BANDED)}
    gains = {f"loss of {maps[0]} over {case}": difference(own[maps[0]], own[case]) for case in BANDED}
    rows: list[list[Given]] = [
        [name, mean(values), "–" if name == SOFTMAX else difference(values, own[SOFTMAX])]
        for name, values in own.items()
    ]
    columns: list[str | tuple[str, str]] = ["attention, untrained", ("loss", "nats a token"), ("over softmax", "nats")]
    return decide(gains, unit="nats", columns=columns, rows=rows)


def _maps(results: Pairs) -> tuple[str, ...]:
    return MAPS[str(results[0][0].settings["model"]["kind"])]


def _claim(key: str, sentence: str, number: str, judge: Callable[[Pairs], Verdict]) -> Claim:
    """The claims share their cells."""
    return Claim(
        key=key, article=8, sentence=sentence, articles_number=number, cells=_cells, measure=_measure, judge=judge
    )


TEMPLATES = (
    Template(
        claim=_claim(
            KEY,
            "On a pretrained model's queries and keys linear maps give weights nearer to uniform ones than to softmax's",
            "none given",
            _judge_entropies,
        ),
        refuses=lambda model: None,
        beside=("linear-entropies",),
    ),
    Template(
        claim=_claim(
            "pretrained-linear-band",
            "In a pretrained model, untrained, a band makes a linear map better: its own cut to a window, or softmax near and the "
            "map for the rest",
            "a later remark, without numbers: clearly better",
            _judge_band,
        ),
        refuses=lambda model: (
            None if model["kind"] == DECODER else "the loss of the next token is compared, and this is an encoder"
        ),
        beside=("linear-band",),
    ),
)
