"""An upper bound of |e| over a whole domain, proven where the formulas allow it, and otherwise with its assumption stated.

**Intervals.** The domain is cut into cells [l, h] with middle m. By the mean value theorem e([l, h]) ⊂ e(m) + e′([l, h])·[−r, r], with
e(m) and e′ in interval arithmetic over dual numbers, so rounding errors are inside (see ``arithmetic``). Cells whose bound
exceeds the largest error seen by more than ``tolerance`` are halved until none is left. The bound holds for the formula in
real numbers with these float64 constants; rounding of a float32 or bfloat16 evaluation comes on top.

**Grid.** For a formula that intervals do not know: maximum over a fine grid + half the spacing × the largest slope of e. The
slope is ``lipschitz`` where given (then the bound is proven), else twice the largest slope found between grid points (then
it is an assumption, and ``how`` says so).

Cost: some ten thousand cells, below a tenth of a second; memory below 100 MB.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from jieyue.errors import InputError

from .arithmetic import Interval, Jet, Unsupported
from .forms import Approximation, view

__all__ = ["Certificate", "certify"]

MOST_CELLS = 2**18
GRID_POINTS = 200_001
SMALL = 1e-9  # below this an error is as good as none, and no cell is halved for it


@dataclass(frozen=True)
class Certificate:
    """``bound`` ≥ |e| on the domain. ``proven``: without assumption. ``how``: the argument in a sentence."""

    bound: float
    proven: bool
    how: str


def certify(
    approximation: Approximation,
    domain: tuple[float, float] = (-8.0, 8.0),
    *,
    lipschitz: float | None = None,
    tolerance: float = 1e-3,
) -> Certificate:
    """Bounds |approximation − target| on ``domain``; see the two arguments above.

    ``lipschitz``: a bound of the error's slope, used where intervals cannot be. ``InputError`` for a negative one.
    """
    if lipschitz is not None and not lipschitz >= 0:
        raise InputError(f"lipschitz={lipschitz}: expected a bound of the error's slope, zero or more")
    try:
        return _by_intervals(approximation, domain, tolerance)
    except Unsupported as unknown:
        return _by_grid(approximation, domain, lipschitz, str(unknown))
    except (TypeError, AttributeError) as unknown:  # code that is not made of torch functions alone
        return _by_grid(approximation, domain, lipschitz, str(unknown).splitlines()[0])


def _enclosures(approximation: Approximation, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """(upper bounds of |e| on each cell, lower bounds of max |e| from the middles)."""
    function, constants = view(approximation.form, approximation.target), approximation.constants

    def error(x: Interval | Jet) -> Interval | Jet:
        return function(x, *constants) - approximation.target.function(x)

    middle = (low + high) / 2
    radius = torch.maximum(high - middle, middle - low) * (1 + 2e-16)
    at_middle = error(Interval(middle, middle))
    jet = error(Jet(Interval(low, high), 1.0))
    if not isinstance(at_middle, Interval) or not isinstance(jet, Jet):
        raise Unsupported("a formula that does not depend on x")
    assert isinstance(jet.value, Interval) and (jet.slope is None or isinstance(jet.slope, Interval))
    center = torch.maximum(at_middle.low.abs(), at_middle.high.abs())
    steepest = torch.zeros_like(low) if jet.slope is None else torch.maximum(jet.slope.low.abs(), jet.slope.high.abs())
    by_slope = (center + steepest * radius) * (1 + 1e-15)
    direct = torch.maximum(jet.value.low.abs(), jet.value.high.abs())
    reached = torch.where(at_middle.low > 0, at_middle.low, torch.where(at_middle.high < 0, -at_middle.high, 0.0))
    return torch.minimum(by_slope.nan_to_num(torch.inf, torch.inf), direct), reached


def _by_intervals(approximation: Approximation, domain: tuple[float, float], tolerance: float) -> Certificate:
    edges = torch.linspace(*domain, 513, dtype=torch.float64)
    low, high = edges[:-1], edges[1:]
    bound = reached = 0.0
    num_cells = len(low)
    while len(low):
        upper, lower = _enclosures(approximation, low, high)
        reached = max(reached, float(lower.max()))
        open_cells = upper > max(reached * (1 + tolerance), SMALL)
        if num_cells + 2 * int(open_cells.sum()) > MOST_CELLS:
            open_cells = torch.zeros_like(open_cells)
        bound = max(bound, _largest(upper[~open_cells]))
        low, high = low[open_cells], high[open_cells]
        middle = (low + high) / 2
        low, high = torch.cat([low, middle]), torch.cat([middle, high])
        num_cells += len(low)
    if bound == float("inf"):
        raise Unsupported("a formula whose enclosure is unbounded")
    return Certificate(bound, True, f"interval arithmetic over {num_cells} cells, rounding included")


def _largest(values: Tensor) -> float:
    return float(values.max()) if len(values) else 0.0


def _by_grid(
    approximation: Approximation, domain: tuple[float, float], lipschitz: float | None, reason: str
) -> Certificate:
    x = torch.linspace(*domain, GRID_POINTS, dtype=torch.float64)
    error = approximation(x) - approximation.target.function(x)
    spacing = (domain[1] - domain[0]) / (GRID_POINTS - 1)
    if lipschitz is not None:
        steepest, source = lipschitz, "as given"
    else:
        steepest, source = 2 * float(error.diff().abs().max()) / spacing, "assumed: twice the largest found"
    bound = float(error.abs().max()) + steepest * spacing / 2
    how = f"a grid of {GRID_POINTS} points, the error's slope at most {steepest:.3g} ({source}); no intervals for {reason}"
    return Certificate(bound, lipschitz is not None, how)
