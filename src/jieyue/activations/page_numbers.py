"""The numbers of docs/gelu.md and its Chinese twin: computed from the fits, and written as both pages show them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from .arithmetic import slope
from .fitting import Fit
from .forms import TARGETS

__all__ = ["COMMAND", "digits", "error_on", "left_tail", "number", "rounding", "table", "up"]

COMMAND = "jieyue fit gelu --page docs"


def number(value: float, places: int = 4) -> str:
    """A number for the text: 3.578e-4, 0.0447149."""
    text = f"{value:.{places - 1}e}"
    mantissa, _, power = text.partition("e")
    return f"{value:.{places}g}" if -2 <= int(power) <= 3 else f"{mantissa}e{int(power)}"


def digits(found: Fit, name: str, places: int = 14) -> str:
    """A constant rounded to so many digits after the point, from all that were computed."""
    import mpmath

    with mpmath.workdps(40):
        return str(mpmath.nstr(mpmath.mpf(found.digits[name]), places + (1 if name == "l" else -1), strip_zeros=False))


def table(head: list[str], rows: list[list[str]]) -> str:
    """Rows of cells as a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def error_on(found: Fit, target: str) -> float:
    """The largest error of a gate, whatever it was fitted to, on another target."""
    form, constants = found.approximation.form, found.approximation.constants
    x = torch.linspace(0, 8, 16001, dtype=torch.float64)
    if target == "gelu'":
        value = slope(lambda p: p * (form.function(p, *constants) + 1) * 0.5, x)
    else:
        gate = (form.function(x, *constants) + 1) * 0.5
        value = gate * x if target == "gelu" else gate
    return float((value - TARGETS[target].function(x)).abs().max())


def left_tail(found: Fit) -> float:
    """How many times too small a fit of GELU is at x = −5."""
    x = torch.tensor(-5.0, dtype=torch.float64)
    return float(TARGETS["gelu"].function(x) / found(x))


def rounding(dtype: torch.dtype) -> float:
    """The largest error of torch's exact GELU in ``dtype`` at arguments that are exact in it."""
    x = torch.linspace(-8, 8, 16001).to(dtype)
    return float((F.gelu(x).double() - TARGETS["gelu"].function(x.double())).abs().max())


def up(value: float) -> float:
    """Rounded up to five digits."""
    step = 10.0 ** (math.floor(math.log10(value)) - 4)
    return math.ceil(value / step) * step
