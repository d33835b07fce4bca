"""Sums and counts travel; the mean is taken once, at the end. ``Tally(total, weight)`` is the unit of every loss here.

Law: the tally of a batch is the sum of the tallies of its parts, whatever the cut. A mean of means obeys no such law
when the parts weigh differently, which is the accumulation bug of 2024 (transformers #34191, #47688).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Tally"]


@dataclass(frozen=True, slots=True)
class Tally:
    """A sum and what it is a sum over.

    ``total``: scalar tensor (differentiable) or float, the sum over all counted things (labels, rows, pairs);
    ``weight``: scalar tensor or number, how many things were counted, never negative. ``a + b`` adds both parts;
    ``mean()`` divides, and refuses a weight of zero with ``ValueError``. ``Tally(0.0, 0)`` is the identity.
    """

    total: Tensor | float
    weight: Tensor | float

    def __add__(self, other: Tally) -> Tally:
        if not isinstance(other, Tally):
            return NotImplemented
        return Tally(self.total + other.total, self.weight + other.weight)

    def __radd__(self, other: int) -> Tally:
        """``sum(tallies)`` starts from the integer 0."""
        if other != 0:
            return NotImplemented
        return self

    def mean(self) -> Tensor | float:
        """total / weight; ``ValueError`` where nothing was counted."""
        if float(self.weight) == 0:
            raise ValueError(
                "Tally.mean(): found weight 0, expected at least one counted label; are all labels ignored?"
            )
        return self.total / self.weight

    def detach(self) -> Tally:
        """The same numbers as plain floats, cut from the graph: safe to keep over a whole epoch."""
        total = self.total if isinstance(self.total, float | int) else self.total.detach()
        return Tally(float(total), float(self.weight))
