"""Constants from float64 alone, for any callable: least squares with weights, and the smallest maximum.

* ``least_squares``: Levenberg and Marquardt's method on Σ w(x)·e(x)².
* ``smallest_maximum``: Osborne and Watson's method (1969), which is Remez' exchange for any form. The error is linearised
  at its extremes; the linear problem min max |e_i + ∇e_i·δ| is solved exactly by trying every vertex (k + 1 extremes and their
  signs: a few thousand small systems at once); a step along δ is taken as far as the true maximum falls. At a minimum
  k + 1 extremes are equally large and no direction lowers them all (Kolmogorov's criterion); their signs alternate where
  the form's tangent space is a Haar space, and need not elsewhere.
* Where no such step exists (kinks in θ), Nelder and Mead's simplex goes on, and the result says that it is not levelled.

Legend: θ constants, k their number, m extremes, e the error at the points, J = ∂e/∂θ.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations, product

import torch
from torch import Tensor

from .problem import Problem, local_extremes

__all__ = ["Found", "least_squares", "smallest_maximum"]

MOST_EXTREMES = 12


@dataclass(frozen=True)
class Found:
    """Constants, the largest error over the points, and the indices of the k + 1 levelled points ([] when not levelled)."""

    theta: list[float]
    largest: float
    active: list[int]


def _errors(problem: Problem, points: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda theta: problem.error(points, theta.tolist())


def _jacobian(errors: Callable[[Tensor], Tensor], theta: Tensor) -> Tensor:
    """[points, k] by central differences, good to about ten digits."""
    columns = []
    for j in range(len(theta)):
        step = torch.zeros_like(theta)
        step[j] = 6e-6 * max(abs(float(theta[j])), 1e-2)
        columns.append((errors(theta + step) - errors(theta - step)) / (2 * step[j]))
    return torch.stack(columns, 1)


def least_squares(problem: Problem, points: Tensor, weights: Tensor, start: list[float]) -> list[float]:
    """θ at a local minimum of Σ weights·e², from ``start``."""
    root = weights.sqrt()
    errors = _errors(problem, points)
    theta = torch.tensor(start, dtype=torch.float64)
    residual = errors(theta) * root
    damping = 1e-3
    for _ in range(200):
        jacobian = _jacobian(errors, theta) * root[:, None]
        normal, right = jacobian.T @ jacobian, jacobian.T @ residual
        moved = False
        while damping < 1e12:
            system = normal + damping * torch.diag(normal.diagonal() + 1e-300)
            step, bad = torch.linalg.solve_ex(system, -right)
            trial = errors(theta + step) * root
            if not bad and torch.isfinite(trial).all() and trial.square().sum() < residual.square().sum():
                theta, residual, damping, moved = theta + step, trial, max(damping / 10, 1e-15), True
                break
            damping *= 10
        if not moved or step.abs().max() <= 1e-14 * theta.abs().max():
            break
    return [float(value) for value in theta]


def smallest_maximum(problem: Problem, points: Tensor) -> Found:
    """θ at a minimum of max |e| over the points, the best of several starts (the form's own and scaled ones)."""
    tried: list[Found] = []
    for factor in (1.0, 0.7, 1.5):
        start = [factor * s for s in problem.start]
        if torch.isfinite(problem.error(points, start)).all():
            tried.append(
                _osborne_watson(problem, points, least_squares(problem, points, torch.ones_like(points), start))
            )
    best = min(
        tried, key=lambda found: found.largest
    )  # never empty: Problem.check saw finite values at the start itself
    levelled = [found for found in tried if found.active and found.largest <= best.largest * (1 + 1e-7)]
    return levelled[0] if levelled else _simplex(problem, points, best.theta)


def _osborne_watson(problem: Problem, points: Tensor, start: list[float]) -> Found:
    errors = _errors(problem, points)
    theta = torch.tensor(start, dtype=torch.float64)
    e = errors(theta)
    k = len(theta)
    for _ in range(100):
        largest = float(e.abs().max())
        chosen = _candidates(e, k)
        slopes = _jacobian(_errors(problem, points[chosen]), theta)
        vertex = _best_vertex(e[chosen], slopes)
        if vertex is None:
            return Found(theta.tolist(), largest, [])
        step, level, active = vertex
        levelled = level >= largest * (1 - 1e-11)
        if levelled:
            return Found(theta.tolist(), largest, [chosen[i] for i in active])
        length = 1.0
        while length > 1e-9:
            trial = errors(theta + length * step)
            if float(trial.abs().max()) <= largest - 1e-4 * length * (largest - level):
                break
            length /= 2
        else:
            near = level >= largest * (1 - 1e-7)  # float64 can tell no more
            return Found(theta.tolist(), largest, [chosen[i] for i in active] if near else [])
        theta, e = theta + length * step, trial
    return Found(theta.tolist(), float(e.abs().max()), [])


def _candidates(e: Tensor, k: int) -> list[int]:
    """The largest local extremes of |e|; where they are fewer than k + 1, evenly spaced points join them."""
    found = sorted(local_extremes(e), key=lambda i: -float(e[i].abs()))[:MOST_EXTREMES]
    if len(found) <= k:
        found = sorted({*found, *(int(i) for i in torch.linspace(0, len(e) - 1, 2 * k + 5))})
    return sorted(found)


def _best_vertex(e: Tensor, slopes: Tensor) -> tuple[Tensor, float, tuple[int, ...]] | None:
    """min over δ of max_i |e_i + slopes_i·δ|, exactly: (δ, the maximum, the k + 1 indices that attain it)."""
    m, k = slopes.shape
    scale = slopes.abs().amax(0)
    if (scale == 0).any():
        return None
    slopes = slopes / scale
    subsets = torch.tensor(list(combinations(range(m), k + 1)))
    signs = torch.tensor([(1.0, *rest) for rest in product((1.0, -1.0), repeat=k)], dtype=e.dtype)
    rows = slopes[subsets][:, None].expand(-1, len(signs), -1, -1)
    matrix = torch.cat([rows, -signs[None, :, :, None].expand(len(subsets), -1, -1, -1)], -1)
    right = -e[subsets][:, None, :, None].expand(-1, len(signs), -1, -1)
    solved, bad = torch.linalg.solve_ex(matrix, right)
    solved = solved.squeeze(-1)
    steps, levels = solved[..., :k], solved[..., k].abs()
    attained = (e + torch.einsum("sgk,mk->sgm", steps, slopes)).abs().amax(-1)
    right_ones = (bad == 0) & torch.isfinite(attained) & (attained <= levels * (1 + 1e-9) + 1e-18)
    if not right_ones.any():
        return None
    score = torch.where(right_ones, attained, math.inf).flatten()
    index = int(score.argmin())
    subset, sign = divmod(index, len(signs))
    return steps[subset, sign] / scale, float(score[index]), tuple(int(i) for i in subsets[subset])


def _simplex(problem: Problem, points: Tensor, start: list[float]) -> Found:
    """Nelder and Mead's descent of max |e|, restarted until it stands still."""
    errors = _errors(problem, points)

    def height(theta: Tensor) -> float:
        value = float(errors(theta).abs().max())
        return value if math.isfinite(value) else math.inf

    best = torch.tensor(start, dtype=torch.float64)
    k = len(start)
    for _ in range(6):
        corners = [best] + [
            best + 0.05 * max(abs(float(best[j])), 0.1) * torch.eye(k, dtype=best.dtype)[j] for j in range(k)
        ]
        heights = [height(corner) for corner in corners]
        before = min(heights)
        for _ in range(250 * k):
            order = sorted(range(k + 1), key=heights.__getitem__)
            corners, heights = [corners[i] for i in order], [heights[i] for i in order]
            if heights[-1] - heights[0] <= 1e-12 * heights[0]:
                break
            middle = torch.stack(corners[:-1]).mean(0)
            trials = {t: middle + t * (middle - corners[-1]) for t in (1.0, 2.0, 0.5, -0.5)}
            reflected = height(trials[1.0])
            stretch = (
                2.0
                if reflected < heights[0]
                else 1.0
                if reflected < heights[-2]
                else 0.5
                if reflected < heights[-1]
                else -0.5
            )
            found = height(trials[stretch])
            if stretch == 2.0 and reflected < found:
                stretch, found = 1.0, reflected
            if found < heights[-1]:
                corners[-1], heights[-1] = trials[stretch], found
            else:
                corners = [corners[0]] + [(corner + corners[0]) / 2 for corner in corners[1:]]
                heights = [heights[0]] + [height(corner) for corner in corners[1:]]
        best = corners[min(range(k + 1), key=heights.__getitem__)]
        if min(heights) >= before * (1 - 1e-9):
            break
    return Found(best.tolist(), height(best), [])
