"""Constants to many digits: Remez' exchange in mpmath, and the match of Taylor coefficients.

At a best approximation in the maximum norm k + 1 extremes x_i of the error are equally large. Newton solves
e(x_i; θ) = s_i·E for the k constants θ and the level E (s_i the signs found in float64); each x_i then moves to the zero of e′
beside it; repeated until all sizes agree to the digits wanted. Where the form's tangent space is a Haar space, the s_i alternate and
this is Remez' algorithm (E. Ya. Remez, 1934; for nonlinear forms Meinardus and Schwedt, 1964). On a finite set of
points (the article's grid) the x_i stay among them.

Cost: some hundred evaluations in 40-digit arithmetic, tenths of a second.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .arithmetic import Exact, slope
from .multiprecision import Context, Real
from .problem import Problem, local_extremes
from .search import Found

__all__ = ["Levelled", "NotLevelled", "level", "taylor_match"]


class NotLevelled(ArithmeticError):
    """The exchange did not end in k + 1 equal errors, or the Taylor coefficients cannot be matched."""


@dataclass(frozen=True)
class Levelled:
    """Constants (mpmath numbers) whose errors at ``places`` have equal size ``level``."""

    theta: list[Real]
    level: Real
    places: list[Real]


def level(
    problem: Problem, found: Found, points: Tensor, context: Context, *, discrete: bool = False, digits: int = 30
) -> Levelled:
    """The exchange, from float64 constants and their k + 1 levelled points; ``discrete`` keeps to ``points``.

    Raises ``NotLevelled`` where it does not converge, or converges to something that is larger elsewhere.
    """
    if not found.active:
        raise NotLevelled("the search in float64 did not level the extremes")
    theta: list[Real] = [context.mpf(value) for value in found.theta]
    accuracy = context.mpf(10) ** -digits
    indices, before = list(found.active), [-1]
    for _ in range(30):
        e = problem.error(points, theta)
        indices = _moved(e, indices)
        if discrete:
            places = [context.mpf(float(points[i])) for i in indices]
        else:
            places = [_extreme(problem, theta, points, i, context, accuracy) for i in indices]
        sizes = [abs(_error(problem, x, theta, context)) for x in places]
        if max(sizes) - min(sizes) <= accuracy * max(sizes) and (discrete is False or indices == before):
            if float(e.abs().max()) > float(max(sizes)) * (1 + 1e-9):
                raise NotLevelled("the error is larger at another place")
            return Levelled(theta, max(sizes), places)
        before = indices
        theta = _equalise(problem, theta, places, context, accuracy)
    raise NotLevelled("the exchange did not settle in 30 rounds")


def _moved(e: Tensor, indices: list[int]) -> list[int]:
    """The local extremes next to the former ones, of the same sign."""
    extremes = local_extremes(e)
    moved = [min((x for x in extremes if e[x] * e[i] > 0), key=lambda x: abs(x - i), default=i) for i in indices]
    return moved if len(set(moved)) == len(moved) else indices


def _error(problem: Problem, x: Real, theta: list[Real], context: Context) -> Real:
    return problem.error(Exact(x, context), theta).value


def _equalise(problem: Problem, theta: list[Real], places: list[Real], context: Context, accuracy: Real) -> list[Real]:
    """Newton on e(x_i; θ) − s_i·E = 0 for (θ, E), derivatives by differences of half the digits."""
    k = len(theta)
    values = [_error(problem, x, theta, context) for x in places]
    signs = [context.sign(value) for value in values]
    height = sum(abs(value) for value in values) / (k + 1)
    small = context.mpf(10) ** (-context.dps // 2)
    for _ in range(30):
        matrix, right = context.matrix(k + 1, k + 1), context.matrix(k + 1, 1)
        for i, x in enumerate(places):
            for j in range(k):
                step = max(abs(theta[j]), context.mpf("1e-3")) * small
                shifted = [t + step if n == j else t for n, t in enumerate(theta)]
                matrix[i, j] = (_error(problem, x, shifted, context) - values[i]) / step
            matrix[i, k] = -signs[i]
            right[i] = signs[i] * height - values[i]
        if not all(context.isfinite(value) for value in matrix):
            raise NotLevelled("the slopes at the extremes are not finite")
        try:
            move = context.lu_solve(matrix, right)
        except (ZeroDivisionError, TypeError):  # mpmath's TypeError: a column of zeros
            raise NotLevelled("the constants are not independent at the extremes") from None
        theta = [t + move[j] for j, t in enumerate(theta)]
        height += move[k]
        values = [_error(problem, x, theta, context) for x in places]
        if not all(context.isfinite(value) for value in values):
            raise NotLevelled("Newton's method left the finite numbers")
        if max(abs(v - s * height) for v, s in zip(values, signs, strict=True)) <= accuracy * abs(height) / 4:
            return theta
    raise NotLevelled("Newton's method did not settle")


def _extreme(problem: Problem, theta: list[Real], points: Tensor, index: int, context: Context, accuracy: Real) -> Real:
    """The zero of e′ next to a grid extreme, by the Illinois method; an end of the domain stays where it is."""
    here = context.mpf(float(points[index]))
    if index in (0, len(points) - 1):
        return here

    def steepness(x: Real) -> Real:
        return slope(lambda point: problem.error_at(point, theta, context), Exact(x, context)).value

    low, high = context.mpf(float(points[index - 1])), context.mpf(float(points[index + 1]))
    at_low, at_high = steepness(low), steepness(high)
    if at_low * at_high >= 0:  # a kink or a flat place: the grid point is as good as any
        return here
    tolerance = context.sqrt(accuracy) * (high - low)  # a distance δ from the extreme changes e by the order of δ²
    x, side = here, 0
    for _ in range(200):
        before, x = x, (low * at_high - high * at_low) / (at_high - at_low)
        at_x = steepness(x)
        if not at_x or abs(x - before) <= tolerance:
            break
        if at_x * at_high > 0:
            high, at_high, at_low = x, at_x, at_low / 2 if side == 1 else at_low
            side = 1
        else:
            low, at_low, at_high = x, at_x, at_high / 2 if side == -1 else at_high
            side = -1
    return x


def taylor_match(problem: Problem, context: Context) -> list[Real]:
    """The local criterion: θ for which the first k Taylor coefficients at 0 that depend on θ agree with the target's.

    Raises ``NotLevelled`` when no such θ is found from the form's start.
    """
    k = len(problem.free)
    orders = 2 * k + 2
    tiny = context.mpf(10) ** (-context.dps // 2)

    def coefficients(theta: list[Real]) -> list[Real]:
        return list(context.taylor(lambda x: _error(problem, x, theta, context), 0, orders))

    theta = [context.mpf(value) for value in problem.start]
    here = coefficients(theta)
    moved = [coefficients([t * (1 + (n == j) * context.mpf("0.01")) for n, t in enumerate(theta)]) for j in range(k)]
    rows = [order for order in range(orders + 1) if any(abs(m[order] - here[order]) > tiny for m in moved)][:k]
    if len(rows) < k:
        raise NotLevelled(f"only {len(rows)} of {k} constants show in the Taylor coefficients up to order {orders}")
    try:
        found = context.findroot(lambda *t: [coefficients(list(t))[order] for order in rows], theta, tol=tiny**2)
    except (ValueError, ZeroDivisionError) as error:
        raise NotLevelled(f"no constants match the Taylor coefficients: {str(error).splitlines()[0]}") from None
    return list(found)
