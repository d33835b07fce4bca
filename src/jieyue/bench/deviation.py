"""What a pattern changes at each head of a model, on a text: a statement about its queries, and the bound beside the measurement.

For the queries of *this text*, drawn at random with replacement: "for 99 % of them m <= .4, confidence .99", m the softmax mass of
the keys that the pattern drops. The statement is Clopper and Pearson's, one-sided, and holds for all layers and heads together
(Bonferroni). What the layers do to one another end to end is measured elsewhere, not claimed here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jieyue.hf.attention_deviation import HeadDeviations
from jieyue.metrics.intervals import share_bound
from jieyue.report import Picture, Section

__all__ = ["HeadStatement", "add_statements", "statements"]


@dataclass(frozen=True, kw_only=True)
class HeadStatement:
    """One layer and head. For ``share`` of the text's queries: ``m`` at most so much, the deviation's ``bound`` (the tightest form,
    m·max‖v_i − v_j‖) at most so much, and the measured ``deviation``; None where too few queries were drawn to say it.

    ``violations``: drawn queries whose deviation was above its own bound; ``ratio``: mean bound over mean deviation, ``loosest``
    the same for 2·m·max‖v‖ (None where the pattern drops nothing); ``mean_m``: the mean of m.
    """

    layer: str
    head: int
    pattern: str
    m: float | None
    bound: float | None
    deviation: float | None
    violations: int
    queries: int
    mean_m: float
    ratio: float | None
    loosest: float | None


def statements(
    found: Sequence[HeadDeviations], *, share: float = 0.99, confidence: float = 0.99
) -> list[HeadStatement]:
    """A statement for each head of each layer, at ``confidence`` for all of them together."""
    together = sum(len(layer.found.mass) for layer in found)
    each = 1 - (1 - confidence) / max(together, 1)
    made = []
    for layer in found:
        for head in range(len(layer.found.mass)):
            one = type(layer.found)(*(part[head] for part in layer.found))
            measured = float(one.distance.mean())
            told = [share_bound(part.tolist(), share, each) for part in (one.mass, one.tight, one.distance)]
            made.append(
                HeadStatement(
                    layer=layer.layer,
                    head=head,
                    pattern=layer.pattern,
                    m=told[0],
                    bound=told[1],
                    deviation=told[2],
                    violations=int(one.violated.sum()),
                    queries=one.mass.numel(),
                    mean_m=float(one.mass.mean()),
                    ratio=float(one.tight.mean()) / measured if one.mass.any() and measured else None,
                    loosest=float(one.by_largest.mean()) / measured if one.mass.any() and measured else None,
                )
            )
    return made


def add_statements(
    section: Section, made: Sequence[HeadStatement], *, share: float, confidence: float, tokens: int
) -> None:
    """The table, a picture of m by layer, and what it says in one sentence; ``tokens``: of the text that were read, whose queries they
    are."""
    section.note(
        f"For {share:.0%} of the queries of the {tokens:,} tokens that were read a column's values are at most what stands here, at "
        f"confidence {confidence:g} for all layers and heads together (Clopper-Pearson, Bonferroni; queries drawn with replacement). "
        "m: softmax mass of the keys that the pattern drops; bound: m·max‖v_i − v_j‖, i kept, j dropped; both of one layer on the full "
        "model's own q, k, v."
    )
    how = f"{sum(one.queries for one in made)} rows"
    section.fact("violations of the bound", sum(one.violations for one in made), how=how, key=True)
    columns = [
        "layer",
        "head",
        "m",
        "bound",
        "deviation",
        "bound / deviation",
        "2·m·max‖v‖ / deviation",
        "violations",
        "queries",
    ]
    rows = [
        [one.layer, str(one.head), one.m, one.bound, one.deviation, one.ratio, one.loosest, one.violations, one.queries]
        for one in made
    ]
    section.table(columns, rows)
    layers = list(dict.fromkeys(one.layer for one in made))
    curves = {
        name: (list(range(len(layers))), [of(one.mean_m for one in made if one.layer == layer) for layer in layers])
        for name, of in (("largest head", max), ("smallest head", min))
    }
    section.picture(Picture.lines("Mean mass that the pattern drops", curves, x="layer", y=("m", "share")))
