"""A claim that takes a pretrained model: written once for all models of a kind, bound to each that is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from jieyue.evidence.claims import Cell, Claim, Place, Scale
from jieyue.json_values import Facts

from .weights import Weights

__all__ = ["Template", "bind"]


@dataclass(frozen=True, kw_only=True)
class Template:
    """``claim``: as if there were one model: its cells do not name any, its ``measure`` finds it at ``Place.weights``.

    ``refuses``: why a model (``Weights.facts``) cannot serve it; None where it can. ``beside``: keys of the claims without
    pretrained weights that it speaks to; their sections lead to it.
    """

    claim: Claim
    refuses: Callable[[Facts], str | None]
    beside: tuple[str, ...] = ()


def bind(template: Template, weights: Weights) -> Claim:
    """The claim of this model: ``KEY.NAME``; what the model is stands in every cell, so that other weights are other cells."""
    claim, name = template.claim, weights.name

    def cells(scale: Scale, seeds: Sequence[int]) -> list[Cell]:
        return [
            Cell(f"{cell.claim}.{name}", {**cell.settings, "model": weights.facts}, cell.seed)
            for cell in claim.cells(scale, seeds)
        ]

    def measure(cell: Cell, place: Place) -> Facts:
        return claim.measure(cell, replace(place, weights=weights.folder))

    return replace(claim, key=f"{claim.key}.{name}", cells=cells, measure=measure)
