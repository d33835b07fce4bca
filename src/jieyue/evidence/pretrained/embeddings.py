"""Articles 1 and 6 on a pretrained encoder: what becomes of its embeddings, and of what they are for, under another attention or GELU.

A passage's embedding is the mean of the last hidden states of its tokens, of length 1. The cosine is that of a passage's embedding
with the one that the model as loaded gives. Score: the share of passages whose nearest other passage is of the same article (two
passages of each). Nothing is trained; a seed draws other articles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from jieyue.evidence.claims import Cell, Claim, Pairs, Place, Scale, Verdict
from jieyue.evidence.judging import by_seed, decide, difference, mean
from jieyue.hf.loading import load
from jieyue.hf.use import use
from jieyue.json_values import Facts
from jieyue.report import Estimate
from jieyue.report.amounts import Given
from jieyue.tasks.batches import evaluating

from .template import Template
from .texts import WIKITEXT, passages
from .weights import ENCODER

if TYPE_CHECKING:
    from jieyue.hf.types import Tokenizer

__all__ = ["TEMPLATES", "nearest_is_its_own"]

LOADED = "as loaded"
PATTERNS = ("global(1)+local(64)", "local(64)", "local(32)+atrous(8)")
CLAIMED = PATTERNS[0]
FORMS = ("tanh", "sigmoid", "sigmoid-minimax")
ARTICLES_FORMS = FORMS[:2]
LEAST_COSINE = {"attention": 0.9, "gelu": 0.99}
MARGIN = 0.05  # of the score: what "is as good" may hide
SIZES: dict[str, dict[str, Facts]] = {
    "attention": {
        "minutes": {"articles": 10, "words": 200, "tokens": 256},
        "hour": {"articles": 12, "words": 400, "tokens": 512, "data": WIKITEXT},
    },
    "gelu": {
        "minutes": {"articles": 10, "words": 60, "tokens": 128},
        "hour": {"articles": 24, "words": 80, "tokens": 128, "data": WIKITEXT},
    },
}


def _cells(key: str, changed: str) -> Callable[[Scale, Sequence[int]], list[Cell]]:
    def cells(scale: Scale, seeds: Sequence[int]) -> list[Cell]:
        sizes = SIZES[changed].get(scale)
        return [] if sizes is None else [Cell(key, {"changed": changed, **sizes}, seed) for seed in seeds]

    return cells


def _measure(cell: Cell, place: Place) -> Facts:
    """Mean cosine and score of every variant, the model as loaded first; ``seconds`` are not told: padding decides them."""
    asked, changed = cell.settings, str(cell.settings["changed"])
    drawn = passages(asked, cell.seed, place)
    names, texts = [name for name, _ in drawn], [text for _, text in drawn]
    variants = PATTERNS if changed == "attention" else FORMS
    numbers: Facts = {"passages": len(drawn)}
    reference: Tensor | None = None
    for variant in (None, *variants):
        model, tokenizer = _changed(place.weights, changed, variant)
        found = _embedded(model, tokenizer, texts, asked["tokens"])
        reference = found if reference is None else reference
        numbers[f"{variant or LOADED} cosine"] = float((found * reference).sum(-1).mean())
        numbers[f"{variant or LOADED} score"] = nearest_is_its_own(found, names)
    return numbers


def _changed(folder: Path | None, changed: str, variant: str | None) -> tuple[nn.Module, Tokenizer]:
    """A fresh copy each time: nothing of one variant is left for the next."""
    assert folder is not None  # ``bind`` gives it
    model, tokenizer = load(folder, None)
    if variant is not None and changed == "attention":
        use(model, attention=variant)
    elif variant is not None:
        use(model, gelu=variant)
    return model, tokenizer


def _embedded(model: nn.Module, tokenizer: Tokenizer, texts: Sequence[str], tokens: int) -> Tensor:
    """[texts, hidden], float64, of length 1."""
    found = []
    with evaluating(model):
        for start in range(0, len(texts), 8):
            some = list(texts[start : start + 8])
            batch = tokenizer(some, truncation=True, max_length=tokens, padding=True, return_tensors="pt")
            states = model(**batch).last_hidden_state.double()
            kept = batch["attention_mask"][..., None].double()
            found.append((states * kept).sum(1) / kept.sum(1))
    return nn.functional.normalize(torch.cat(found), dim=-1)


def nearest_is_its_own(embeddings: Tensor, names: Sequence[str]) -> float:
    """Share of rows whose nearest other row (by cosine; rows have length 1) has the same name."""
    near = embeddings @ embeddings.T
    near.fill_diagonal_(-torch.inf)
    return sum(names[other] == name for name, other in zip(names, near.argmax(1).tolist(), strict=True)) / len(names)


def _judge(changed: str, claimed: Sequence[str]) -> Callable[[Pairs], Verdict]:
    """Holds where the cosine of each claimed variant lies above its border and its score is lower by less than the margin."""

    def judge(results: Pairs) -> Verdict:
        variants = (LOADED, *(PATTERNS if changed == "attention" else FORMS))
        cosine = {one: by_seed(results, f"{one} cosine") for one in variants}
        score = {one: by_seed(results, f"{one} score") for one in variants}
        gains: dict[str, Estimate] = {}
        least = LEAST_COSINE[changed]
        for one in claimed:
            gains[f"cosine of {one}, less {least:g}"] = _moved(mean(cosine[one]), -least)
            gains[f"score of {one} over the model as loaded, plus {MARGIN:g}"] = _moved(
                difference(score[one], score[LOADED]), MARGIN
            )
        rows: list[list[Given]] = [
            [
                one,
                "–" if one == LOADED else mean(cosine[one]),
                mean(score[one]),
                "–" if one == LOADED else difference(score[one], score[LOADED]),
            ]
            for one in variants
        ]
        columns: list[str | tuple[str, str]] = [
            changed, "cosine with the model as loaded", ("nearest is of the same article", "share"),
            ("over the model as loaded", "share"),
        ]  # fmt: skip
        return decide(gains, columns=columns, rows=rows)

    return judge


def _moved(found: Estimate, by: float) -> Estimate:
    return Estimate(found.value + by, found.low + by, found.high + by, found.how)


def _no_encoder(model: Facts) -> str | None:
    return None if model["kind"] == ENCODER else "passages are embedded by an encoder, and this is a decoder"


def _no_gelu(model: Facts) -> str | None:
    if "gelu" not in str(model["activation"]):
        return f"its activation is {model['activation']}: there is no GELU to replace"
    return _no_encoder(model)


TEMPLATES = (
    Template(
        claim=Claim(
            key="pretrained-local",
            article=1,
            sentence="A pretrained encoder that sees its first token and a window, untrained, keeps its embeddings (cosine at least "
            f"{LEAST_COSINE['attention']:g}) and what they are for (within {100 * MARGIN:g} points)",
            articles_number="none given: quality was not measured",
            cells=_cells("pretrained-local", "attention"),
            measure=_measure,
            judge=_judge("attention", [CLAIMED]),
        ),
        refuses=_no_encoder,
    ),
    Template(
        claim=Claim(
            key="pretrained-gelu",
            article=6,
            sentence="GELU's tanh form and its logistic form in the place of a pretrained encoder's own keep its embeddings "
            f"(cosine at least {LEAST_COSINE['gelu']:g}) and what they are for (within {100 * MARGIN:g} points)",
            articles_number="none given: the forms' own errors alone",
            cells=_cells("pretrained-gelu", "gelu"),
            measure=_measure,
            judge=_judge("gelu", ARTICLES_FORMS),
        ),
        refuses=_no_gelu,
        beside=("gelu-constants",),
    ),
)
