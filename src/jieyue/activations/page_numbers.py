"""The numbers of docs/gelu.md and its Chinese twin: computed from the fits, and written as both pages show them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from .arithmetic import slope
from .fitting import Fit
from .forms import FORMS, TARGETS, limit

__all__ = [
    "COMMAND",
    "certified_row",
    "constants_row",
    "digits",
    "error_row",
    "form_rows",
    "left_tail",
    "number",
    "rounding",
    "table",
    "turning_point",
]

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


def form_rows(fits: dict[str, Fit]) -> list[list[str]]:
    """Of every form: name, formula, how many constants, the largest error of its best fit on Φ."""
    return [
        [f"`{name}`", form.formula, str(len(form.constants)), number(fits[f"{name} phi"].error)]
        for name, form in FORMS.items()
    ]


def error_row(label: str, found: Fit) -> list[str]:
    """A label, the largest error, where it is."""
    return [label, number(found.error), f"{found.at:.2f}"]


def constants_row(label: str, found: Fit) -> list[str]:
    """A label, the constants, b/a, the largest error on GELU, on Φ and on GELU's slope."""
    constants = ", ".join(f"{name} = {value:.7f}" for name, value in found.constants.items())
    errors = [number(_error_on(found, target)) for target in ("gelu", "phi", "gelu'")]
    return [label, constants, f"{found.ratios['b/a']:.7f}", *errors]


def certified_row(label: str, found: Fit) -> list[str]:
    """A label, the largest error seen, where, and its certified bound, rounded up."""
    return [label, number(found.error, 7), f"{found.at:.4f}", number(_up(found.bound), 5)]


def turning_point(found: Fit) -> tuple[float, float]:
    """|x| where the polynomial of a tanh5 form turns over, and what is left of the gate at −|x|."""
    a, b, c = found.approximation.constants
    turn = limit((2 * a, 2 * b, 2 * c))
    left = torch.sigmoid(torch.tensor(-2 * (a * turn + b * turn**3 + c * turn**5), dtype=torch.float64))
    return turn, float(left)


def left_tail(found: Fit) -> float:
    """How many times too small a fit of GELU is at x = −5."""
    x = torch.tensor(-5.0, dtype=torch.float64)
    return float(TARGETS["gelu"].function(x) / found(x))


def rounding(dtype: torch.dtype) -> float:
    """The largest error of torch's exact GELU in ``dtype`` at arguments that are exact in it."""
    x = torch.linspace(-8, 8, 16001).to(dtype)
    return float((F.gelu(x).double() - TARGETS["gelu"].function(x.double())).abs().max())


def _error_on(found: Fit, target: str) -> float:
    """The largest error of a gate, whatever it was fitted to, on another target."""
    form, constants = found.approximation.form, found.approximation.constants
    x = torch.linspace(0, 8, 16001, dtype=torch.float64)
    if target == "gelu'":
        value = slope(lambda p: p * (form.function(p, *constants) + 1) * 0.5, x)
    else:
        gate = (form.function(x, *constants) + 1) * 0.5
        value = gate * x if target == "gelu" else gate
    return float((value - TARGETS[target].function(x)).abs().max())


def _up(value: float) -> float:
    """Rounded up to five digits."""
    step = 10.0 ** (math.floor(math.log10(value)) - 4)
    return math.ceil(value / step) * step
