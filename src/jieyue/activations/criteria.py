"""What "best" means: at a point, at the worst place, on the article's grid, or weighted by where the arguments really fall.

=========== =========================================================================================================
local       the Taylor coefficients at 0 agree, as many as there are constants
minimax     max over the whole domain of |e| is smallest
grid        max over the points 0, 0.001, … 3.999 of |e| is smallest: the article's criterion
mixed       the first constant from ``local``, the others from ``grid``: the article's route to 0.044715
a ``Weight`` Σ w(x)·e(x)² is smallest: ``gaussian(σ)``, or ``histogram(edges, counts)`` of a model's own pre-activations
=========== =========================================================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jieyue.errors import InputError

__all__ = ["CRITERIA", "Weight", "article_grid", "gaussian", "histogram"]

CRITERIA = ("local", "minimax", "grid", "mixed")


def article_grid() -> Tensor:
    """0, 0.001, … 3.999: the 4000 points of the article's search."""
    return torch.arange(4000, dtype=torch.float64) / 1000


@dataclass(frozen=True)
class Weight:
    """A density over x, as quadrature points and the share of the arguments that each stands for (they add up to 1)."""

    name: str
    points: Tensor
    shares: Tensor
    domain: tuple[float, float]

    def __repr__(self) -> str:
        return self.name


def gaussian(sigma: float = 1.0, mean: float = 0.0) -> Weight:
    """The weight of normally distributed arguments, by the trapezoidal rule over ±10 standard deviations."""
    if not 0 < sigma < float("inf"):
        raise InputError(f"gaussian(sigma={sigma}): expected a finite number above zero")
    unit = torch.linspace(-10, 10, 2001, dtype=torch.float64)
    shares = torch.exp(-unit * unit / 2)
    label = f"gaussian({sigma:g})" if mean == 0 else f"gaussian({sigma:g}, {mean:g})"
    return Weight(label, mean + sigma * unit, shares / shares.sum(), (mean - 10 * sigma, mean + 10 * sigma))


def histogram(edges: Sequence[float] | Tensor, counts: Sequence[float] | Tensor, name: str = "histogram") -> Weight:
    """The weight of counted arguments: each bin's share at its middle (make the bins narrow)."""
    borders = torch.as_tensor(edges, dtype=torch.float64)
    amounts = torch.as_tensor(counts, dtype=torch.float64)
    if borders.ndim != 1 or len(borders) != len(amounts) + 1 or len(amounts) == 0 or not (borders.diff() > 0).all():
        raise InputError(
            f"histogram(edges, counts): found {list(borders.shape)} edges and {list(amounts.shape)} counts, "
            "expected n + 1 ascending edges for n counts"
        )
    if not torch.isfinite(amounts).all() or (amounts < 0).any() or amounts.sum() == 0:
        raise InputError("histogram(edges, counts): expected finite counts of zero or more, not all zero")
    filled = amounts > 0
    middles = ((borders[1:] + borders[:-1]) / 2)[filled]
    low, high = float(borders[:-1][filled][0]), float(borders[1:][filled][-1])
    return Weight(name, middles, amounts[filled] / amounts.sum(), (low, high))
