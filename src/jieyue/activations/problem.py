"""What is fitted to what, where: the error e(x; θ) of a form's view of a target, in every kind of number.

Legend: θ the free constants, k their number, e = approximation − target.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor

from jieyue.errors import InputError

from .arithmetic import Exact, Jet, Unsupported
from .forms import Form, Target, view
from .multiprecision import Context, Real

__all__ = ["Problem", "local_extremes"]

Constants: TypeAlias = Iterable[float | Real]
_Kind = TypeVar("_Kind", Tensor, Exact)
_Digits = TypeVar("_Digits", Exact, Jet)

POINTS = 4001


@dataclass(frozen=True)
class Problem:
    """``fixed`` holds the constants that are given (floats or mpmath numbers, by name); the others are free."""

    form: Form
    target: Target
    domain: tuple[float, float]
    fixed: Mapping[str, float | Real]

    @cached_property
    def free(self) -> tuple[str, ...]:
        return tuple(name for name in self.form.constants if name not in self.fixed)

    @property
    def start(self) -> list[float]:
        return [start for name, start in zip(self.form.constants, self.form.start, strict=True) if name in self.free]

    def full(self, theta: Constants) -> list[float | Real]:
        """All constants in the form's order, from the free ones."""
        found = dict(zip(self.free, theta, strict=True))
        return [found[name] if name in found else self.fixed[name] for name in self.form.constants]

    def error(self, x: _Kind, theta: Constants) -> _Kind:
        """e(x; θ): a tensor for a tensor, with constants rounded to float64; an Exact for an Exact, with all their digits."""
        if isinstance(x, Exact):
            return self.error_at(x, theta, x.context)
        constants = [float(c) for c in self.full(theta)]
        return view(self.form, self.target)(x, *constants) - self.target.function(x)

    def error_at(self, x: _Digits, theta: Constants, context: Context) -> _Digits:
        """e(x; θ) in mpmath numbers; x may be a Jet over them."""
        constants = [Exact(c, context) for c in self.full(theta)]
        return view(self.form, self.target)(x, *constants) - self.target.function(x)

    @cached_property
    def even(self) -> bool:
        """|e(−x)| = |e(x)| on a symmetric domain: half of it says everything."""
        low, high = self.domain
        if low != -high:
            return False
        x = torch.linspace(0, high, 41, dtype=torch.float64)
        theta = [1.013 * start + 1e-3 for start in self.start]
        here, there = self.error(x, theta).abs(), self.error(-x, theta).abs()
        return bool((here - there).abs().max() <= 1e-13 * max(1.0, high))

    @property
    def half_domain(self) -> tuple[float, float]:
        return (0.0, self.domain[1]) if self.even else self.domain

    def points(self, num_points: int = POINTS) -> Tensor:
        return torch.linspace(*self.half_domain, num_points, dtype=torch.float64)

    def check(self) -> None:
        """``InputError`` for an empty domain, for nothing free, and for values that are not finite."""
        low, high = self.domain
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise InputError(f"domain={self.domain}: expected two finite numbers, the first below the second")
        x = torch.linspace(low, high, POINTS, dtype=torch.float64)
        for what, value in ((f"target {self.target.name!r}", self.target.function(x)),
                            (f"form {self.form.name!r} at its start", self.error(x, self.start))):  # fmt: skip
            if not isinstance(value, Tensor) or value.shape != x.shape:
                raise InputError(
                    f"{what}: found {_described(value)}, expected a tensor of x's shape; is it written in torch code?"
                )
            if value.dtype != x.dtype:
                raise InputError(f"{what}: found {value.dtype} from float64 x, expected float64")
            wrong = ~torch.isfinite(value)
            if wrong.any():
                where = float(x[wrong][0])
                raise InputError(
                    f"{what}: found {float(value[wrong][0])} at x = {where:.6g}, expected finite values on the domain [{low}, {high}]"
                )

    def exact_context(self, digits: int) -> Context | None:
        """An mpmath context of that many digits, or None when the formulas cannot be evaluated in it."""
        import mpmath

        context: Context = mpmath.mp.clone()
        context.dps = digits + 10
        try:
            middle = Exact(context.mpf(sum(self.half_domain)) / 2 + context.mpf(1) / 7, context)
            self.error(middle, self.start)
        except (Unsupported, TypeError, AttributeError):
            return None
        return context


def _described(value: Tensor | float | None) -> str:
    return f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def local_extremes(error: Tensor) -> list[int]:
    """Indices of the largest |e| of each run of one sign, and of every interior local extreme; ends included, ascending."""
    size = error.abs()
    peak = torch.ones_like(size, dtype=torch.bool)
    peak[1:] &= size[1:] >= size[:-1]
    peak[:-1] &= size[:-1] > size[1:]
    return [int(i) for i in torch.nonzero(peak & (size > 0)).flatten()]
