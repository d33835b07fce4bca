"""Fits a form to a target: constants, the largest error and where it is, a certified bound, and the equal extremes.

``fit("tanh", "erf", "mixed")`` gives the 0.044715 of every GELU in the world; ``fit("tanh", "gelu")`` gives better constants at the
same cost. See ``criteria`` for what is best, ``remez`` and ``search`` for how it is found, ``certificate`` for the bound.

Source: https://kexue.fm/archives/7309 (the article); its constants are reproduced digit by digit in the tests.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from jieyue.errors import InputError

from .arithmetic import Formula
from .certificate import certify
from .criteria import CRITERIA, Weight, article_grid
from .forms import Approximation, Form, Target, as_form, as_target
from .multiprecision import Context, Real
from .problem import Problem, local_extremes
from .remez import NotLevelled, level, taylor_match
from .search import least_squares, smallest_maximum

__all__ = ["Fit", "fit", "given"]

DIGITS = 30
MOST_PEAKS = 16


@dataclass(frozen=True)
class Fit:
    """The result of ``fit``, a value: callable, printable, and accepted by ``gelu(x, approximate=...)``.

    ``error``, ``at``: max |approximation − target| over the domain and a place where it is attained; ``bound`` is no
    smaller than the true maximum, by the argument ``how`` (``proven``: without assumption). ``peaks``: extremes as
    (x, error), on the right half where the error is even or odd. ``levelled``: the k + 1 errors of a best approximation
    are equally large; ``alternating``: and change sign from one to the next (None where the criterion asks for neither).
    ``digits``: constants as decimal text, every digit that was computed. ``rms``: the weighted root mean square error.
    """

    approximation: Approximation
    criterion: str
    domain: tuple[float, float]
    fixed: tuple[str, ...]
    error: float
    at: float
    bound: float
    proven: bool
    how: str
    peaks: tuple[tuple[float, float], ...]
    levelled: bool | None = None
    alternating: bool | None = None
    rms: float | None = None
    digits: dict[str, str] = field(default_factory=dict, compare=False)

    @property
    def constants(self) -> dict[str, float]:
        return dict(zip(self.approximation.form.constants, self.approximation.constants, strict=True))

    @property
    def ratios(self) -> dict[str, float]:
        """b/a, c/a: the constants as a(x + b/a·x³) has them, for the polynomial forms of two and three constants."""
        if self.approximation.form.polynomial is None:
            return {}
        (first, a), *others = self.constants.items()
        return {f"{name}/{first}": value / a for name, value in others}

    def __call__(self, x: Tensor) -> Tensor:
        return self.approximation(x)

    def __str__(self) -> str:
        return str(self.approximation)

    def rows(self) -> list[tuple[str, str | float | bool]]:
        """The facts in order, as (what, value): the table that the command line shows."""
        form, target = self.approximation.form, self.approximation.target
        found: list[tuple[str, str | float | bool]] = [
            ("form", f"{form.name}: {form.formula or form.name}"),
            ("target", f"{target.name}: {target.formula or target.name}"),
            ("criterion", self.criterion),
            ("domain", f"[{self.domain[0]:g}, {self.domain[1]:g}]"),
        ]
        for name, value in self.constants.items():
            text = self.digits.get(name, repr(value))
            found.append((f"{name} (fixed)" if name in self.fixed else name, text))
        found += [(name, f"{value:.13g}") for name, value in self.ratios.items()]
        found += [("largest error", self.error), ("at x", self.at), ("certified bound", self.bound), ("by", self.how)]
        if self.rms is not None:
            found.append(("weighted rms error", self.rms))
        if self.levelled is not None:
            number = len(form.constants) - len(self.fixed) + 1
            sign = "of alternating sign" if self.alternating else "not alternating in sign"
            found.append((f"{number} equal extremes", sign if self.levelled else "no: a minimum of another kind"))
        return found


def fit(
    form: str | Form | Formula,
    target: str | Target | Formula = "gelu",
    criterion: str | Weight = "minimax",
    domain: tuple[float, float] | None = None,
    fixed: Mapping[str, float | str] | None = None,
    *,
    lipschitz: float | None = None,
) -> Fit:
    """The constants of ``form`` that are best for ``target`` by ``criterion`` on ``domain``.

    ``form``: one of ``FORMS``, a ``Form``, or any callable ``f(x, a, b=start, …)`` in torch code; ``target``: one of
    ``TARGETS``, a ``Target``, or any callable of x; ``criterion``: ``"local"``, ``"minimax"``, ``"grid"``, ``"mixed"`` or a
    ``Weight``. ``domain``: by default (−8, 8), for the grid criteria the article's points 0, 0.001, … 3.999, for a weight the
    range where it lies; a grid over a given domain keeps the step 0.001 and leaves out the end.
    ``fixed``: constants by name, a number or ``"local"`` (the value that the Taylor match gives it).
    ``lipschitz``: see ``certify``.

    Cost: 0.1 to 5 s. ``InputError`` for a form without constants, values that are not finite, an empty domain, names unknown, nothing
    left to fit, and a Taylor match that does not exist.
    """
    form, target = as_form(form), as_target(target)
    grid: Tensor | None = None
    if isinstance(criterion, Weight):
        chosen = domain or criterion.domain
    elif criterion not in CRITERIA:
        raise InputError(
            f"criterion={criterion!r}: expected one of {', '.join(CRITERIA)}, gaussian(sigma) or histogram(edges, counts)"
        )
    elif criterion in ("grid", "mixed"):
        grid = article_grid() if domain is None else _steps(domain)
        chosen = (float(grid[0]), float(grid[-1])) if len(grid) else (0.0, 0.0)
    else:
        chosen = domain or (-8.0, 8.0)
    held = _resolve_fixed(form, target, chosen, dict(fixed or {}), mixed=criterion == "mixed")
    problem = Problem(form, target, (float(chosen[0]), float(chosen[1])), held)
    if not problem.free:
        raise InputError(
            f"fixed={list(held)}: found every constant of {form.name!r} fixed, expected one to fit; measure with given()"
        )
    problem.check()
    theta, levelled, alternating, exact = _solve(problem, criterion, grid)
    return _measured(problem, theta, criterion, lipschitz, levelled=levelled, alternating=alternating, exact=exact)


def given(
    form: str | Form | Formula,
    constants: Mapping[str, float],
    target: str | Target | Formula = "gelu",
    domain: tuple[float, float] = (-8.0, 8.0),
    *,
    lipschitz: float | None = None,
) -> Fit:
    """The same measurements for constants that you bring, such as a paper's.

    >>> published = given("sigmoid", {"l": 1.702})
    >>> f"{published.error:.4f} at {abs(published.at):.2f}, below {published.bound:.4f}"
    '0.0203 at 2.27, below 0.0204'
    """
    approximation = Approximation.of(as_form(form), constants, as_target(target))
    problem = Problem(approximation.form, approximation.target, (float(domain[0]), float(domain[1])), {})
    problem.check()
    return _measured(problem, list(approximation.constants), "given", lipschitz)


def _steps(domain: tuple[float, float]) -> Tensor:
    low, high = domain
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise InputError(f"domain={domain}: expected two finite numbers, the first below the second")
    return low + torch.arange(math.ceil((high - low) * 1000 - 1e-9), dtype=torch.float64) / 1000


def _resolve_fixed(
    form: Form, target: Target, domain: tuple[float, float], fixed: dict[str, float | str], *, mixed: bool
) -> dict[str, float | Real]:
    """Numbers for ``"local"`` entries; the mixed criterion fixes the first constant so, where there is more than one."""
    unknown = set(fixed) - set(form.constants)
    if unknown:
        raise InputError(
            f"fixed: found {', '.join(sorted(unknown))}, expected constants of {form.name!r}: {', '.join(form.constants)}"
        )
    if mixed and len(form.constants) > 1:
        fixed.setdefault(form.constants[0], "local")
    for name, value in fixed.items():
        if value != "local" and not (isinstance(value, int | float) and math.isfinite(value)):
            raise InputError(f"fixed[{name!r}]={value!r}: expected a finite number or 'local'")
    held: dict[str, float | Real] = {name: value for name, value in fixed.items() if not isinstance(value, str)}
    if len(held) < len(fixed):
        problem = Problem(form, target, domain, {})
        problem.check()
        matched = zip(form.constants, _local(problem)[0], strict=True)
        held |= {name: value for name, value in matched if fixed.get(name) == "local"}
    return held


def _local(problem: Problem) -> tuple[list[Real], Context]:
    context = problem.exact_context(DIGITS)
    asked = f"criterion='local' for {problem.form.name!r} and {problem.target.name!r}"
    if context is None:
        raise InputError(
            f"{asked}: found functions that mpmath arithmetic does not know, expected torch's elementary functions"
        )
    try:
        return taylor_match(problem, context), context
    except NotLevelled as reason:
        raise InputError(
            f"{asked}: {reason}; other starting values may help, as defaults of the callable's parameters"
        ) from None


def _solve(
    problem: Problem, criterion: str | Weight, grid: Tensor | None
) -> tuple[Sequence[float | Real], bool | None, bool | None, Context | None]:
    """(θ, levelled, alternating, mpmath context or None)."""
    if isinstance(criterion, Weight):
        inside = (criterion.points >= problem.domain[0]) & (criterion.points <= problem.domain[1])
        if not inside.any():
            raise InputError(f"domain={problem.domain}: found no part of the weight {criterion} in it")
        return (
            least_squares(problem, criterion.points[inside], criterion.shares[inside], problem.start),
            None,
            None,
            None,
        )
    if criterion == "local":
        local, exactly = _local(problem)
        return local, None, None, exactly
    points = problem.points() if grid is None else grid
    found = smallest_maximum(problem, points)
    context = problem.exact_context(DIGITS)
    if context is not None:
        try:
            exact = level(problem, found, points, context, discrete=grid is not None, digits=DIGITS)
        except NotLevelled:
            pass
        else:
            signs = [float(problem.error(x, [float(t) for t in exact.theta])) for x in _tensors(exact.places)]
            return exact.theta, True, _alternates(signs), context
    signs = [float(e) for e in problem.error(points[sorted(found.active)], found.theta)] if found.active else []
    return found.theta, bool(found.active), _alternates(signs) if signs else False, None


def _tensors(places: list[Real]) -> list[Tensor]:
    return [torch.tensor(float(x), dtype=torch.float64) for x in places]


def _alternates(signs: list[float]) -> bool:
    return all(a * b < 0 for a, b in pairwise(signs))


def _measured(
    problem: Problem,
    theta: Sequence[float | Real],
    criterion: str | Weight,
    lipschitz: float | None,
    *,
    levelled: bool | None = None,
    alternating: bool | None = None,
    exact: Context | None = None,
) -> Fit:
    constants = tuple(float(c) for c in problem.full(theta))
    approximation = Approximation(problem.form, constants, problem.target)
    peaks = _peaks(approximation, problem)
    at, worst = max(peaks, key=lambda peak: abs(peak[1]), default=(float(problem.domain[0]), 0.0))
    certificate = certify(approximation, problem.domain, lipschitz=lipschitz)
    rms = None
    if isinstance(criterion, Weight):
        x = criterion.points
        rms = math.sqrt(float((criterion.shares * (approximation(x) - problem.target.function(x)).square()).sum()))
    digits = {}
    if exact is not None:
        digits = {name: exact.nstr(exact.mpf(getattr(value, "value", value)), DIGITS - 5)
                  for name, value in zip(problem.free, theta, strict=True)}  # fmt: skip
    return Fit(
        approximation=approximation, criterion=str(criterion), domain=problem.domain,
        fixed=tuple(name for name in problem.form.constants if name not in problem.free),
        error=abs(worst), at=at, bound=max(certificate.bound, abs(worst)), proven=certificate.proven, how=certificate.how,
        peaks=peaks, levelled=levelled, alternating=alternating, rms=rms, digits=digits,
    )  # fmt: skip


def _peaks(approximation: Approximation, problem: Problem) -> tuple[tuple[float, float], ...]:
    """The extremes of the error over the (half) domain in float64, interior ones refined by a parabola through three points.

    At most ``MOST_PEAKS``, the largest; only the largest where the error is nothing but rounding.
    """
    x = problem.points(16001)
    e = approximation(x) - problem.target.function(x)
    largest = float(e.abs().max())
    extremes = sorted(
        (i for i in local_extremes(e) if float(e[i].abs()) > 1e-3 * largest), key=lambda i: -float(e[i].abs())
    )
    rounding = largest <= 1e-13 * max(1.0, float(problem.target.function(x).abs().max()))
    found = []
    for i in sorted(extremes[: 1 if rounding else MOST_PEAKS]):
        place, value = float(x[i]), float(e[i])
        if 0 < i < len(x) - 1:
            left, right = float(e[i - 1]), float(e[i + 1])
            bend = left - 2 * value + right
            if bend != 0 and abs(shift := (left - right) / (2 * bend)) <= 1:
                place += shift * float(x[1] - x[0])
                point = torch.tensor(place, dtype=torch.float64)
                refined = float(approximation(point) - problem.target.function(point))
                value = refined if abs(refined) >= abs(value) else value
        found.append((place, value))
    return tuple(found)
