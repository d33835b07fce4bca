"""What linear attention keeps of the keys: sums of features, and the three products in which they take part.

    S = Σ_j φ(k_j) v_jᵀ  [F, V],      z = Σ_j φ(k_j)  [F],      read:  φ(q)·S  and  φ(q)·z

The gradients are the same three products with other letters (queries give to dS = Σ_i φ(q_i) g_iᵀ, keys read from it), so one
class serves both. φ is never made whole: it is cut into parts, the constant, b itself, and rectangles of b⊗b that cover
each pair of features once (a pair i ≠ j counts twice), so the second order costs D²/2 features in pieces of 16·D.

Packed for keeping, S and z lie side by side: [..., F, V + 1]. Cost of each product: 2·F·V per row.

Letters: T heads computed together, C rows, D size of b, F number of features, V size of a value.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Part", "Sums", "num_features", "parts_of"]

_RECTANGLE_ROWS = 16


@dataclass(frozen=True, slots=True)
class Part:
    """Some of the features: ``degree`` 0 (one constant), 1 (b) or 2 (b_i·b_j for start ≤ i < stop, j ≥ start)."""

    degree: int
    width: int
    root: float
    start: int = 0
    stop: int = 0

    def expand(self, b: Tensor, present: Tensor | None) -> Tensor:
        """The features [T, C, width] of b [T, C, D]; ``present`` [T, C, 1] is 0 for masked rows, whose b is 0 already."""
        if self.degree == 0:
            return b.new_full((*b.shape[:2], 1), self.root) if present is None else present * self.root
        if self.degree == 1:
            return b if self.root == 1 else b * self.root
        left, right = self._sides(b)
        return (left[..., :, None] * right[..., None, :]).flatten(2)

    def fold(self, b: Tensor, grad: Tensor) -> Tensor | None:
        """The gradient of b given that of ``expand(b)``; None where it does not depend on b."""
        if self.degree == 0:
            return None
        if self.degree == 1:
            return grad if self.root == 1 else grad * self.root
        left, right = self._sides(b)
        grad = grad.unflatten(-1, (left.shape[-1], right.shape[-1]))
        result = torch.zeros_like(b)
        result[..., self.start : self.stop] += (grad @ right[..., None])[..., 0] * self.root
        to_right = (left[..., None, :] @ grad)[..., 0, :]
        to_right[..., self.stop - self.start :] *= math.sqrt(2)
        result[..., self.start :] += to_right
        return result

    def _sides(self, b: Tensor) -> tuple[Tensor, Tensor]:
        """The two factors; pairs outside the square on the diagonal stand for both of their orders."""
        right = b[..., self.start :].clone()
        right[..., self.stop - self.start :] *= math.sqrt(2)
        return b[..., self.start : self.stop] * self.root, right


def parts_of(polynomial: tuple[float, ...], width: int) -> tuple[Part, ...]:
    """The parts of φ for c0 + c1·s + c2·s² and b of ``width`` features; those with coefficient 0 are left out."""
    c0, c1, c2 = polynomial
    parts = []
    if c0:
        parts.append(Part(0, 1, math.sqrt(c0)))
    if c1:
        parts.append(Part(1, width, math.sqrt(c1)))
    for start in range(0, width, _RECTANGLE_ROWS) if c2 else ():
        stop = min(start + _RECTANGLE_ROWS, width)
        parts.append(Part(2, (stop - start) * (width - start), math.sqrt(c2), start, stop))
    return tuple(parts)


def num_features(polynomial: tuple[float, ...], width: int) -> int:
    """F.

    >>> num_features((0, 1, 0), 64), num_features((1, 1, 0), 64), num_features((1, 1, 0.5), 64)
    (64, 65, 2625)
    """
    return sum(part.width for part in parts_of(polynomial, width))


class Sums:
    """S and z of T heads, part by part. ``add`` changes them; ``plus`` gives new ones; ``read`` and ``pull`` only read."""

    def __init__(self, parts: tuple[Part, ...], values: list[Tensor], weights: list[Tensor]) -> None:
        self.parts, self.values, self.weights = parts, values, weights

    @classmethod
    def unpack(cls, parts: tuple[Part, ...], packed: Tensor) -> Sums:
        """From [..., F, V + 1] (leading sizes flattened to T), copied."""
        packed = packed.flatten(0, -3)
        values, weights, start = [], [], 0
        for part in parts:
            piece = packed[:, start : start + part.width]
            values.append(piece[..., :-1].clone(memory_format=torch.contiguous_format))
            weights.append(piece[..., -1:].mT.clone(memory_format=torch.contiguous_format))
            start += part.width
        return cls(parts, values, weights)

    def pack(self) -> Tensor:
        """[T, F, V + 1]."""
        return torch.cat([torch.cat([v, w.mT], -1) for v, w in zip(self.values, self.weights, strict=True)], 1)

    def add(self, b: Tensor, values: Tensor, weights: Tensor | None = None, present: Tensor | None = None) -> None:
        """S += Σ φ(b)·valuesᵀ, z += Σ φ(b)·weight over the rows; weights [T, C, 1], None = 1."""
        for part, total, weight in zip(self.parts, self.values, self.weights, strict=True):
            features = part.expand(b, present)
            total.baddbmm_(features.mT, values)
            weight += (features if weights is None else features * weights).sum(1, keepdim=True)

    def plus(self, b: Tensor, values: Tensor, present: Tensor | None = None) -> Sums:
        """New sums with these rows added."""
        new_values, new_weights = [], []
        for part, total, weight in zip(self.parts, self.values, self.weights, strict=True):
            features = part.expand(b, present)
            new_values.append(torch.baddbmm(total, features.mT, values))
            new_weights.append(weight + features.sum(1, keepdim=True))
        return Sums(self.parts, new_values, new_weights)

    def read(self, b: Tensor, into: Tensor | None, present: Tensor | None = None) -> Tensor:
        """φ(b)·S [T, C, V], added to ``into`` in place if given."""
        for part, total in zip(self.parts, self.values, strict=True):
            features = part.expand(b, present)
            into = torch.bmm(features, total) if into is None else into.baddbmm_(features, total)
        assert into is not None
        return into

    def read_weights(self, b: Tensor) -> Tensor:
        """φ(b)·z [T, C, 1]."""
        terms = [
            (part.expand(b, None) * weight).sum(-1, keepdim=True)
            for part, weight in zip(self.parts, self.weights, strict=True)
        ]
        return sum(terms[1:], terms[0])

    def pull(self, b: Tensor, values: Tensor, weights: Tensor | None, into: Tensor | None) -> Tensor:
        """The gradient of b where φ(b)·S got the gradient ``values`` and φ(b)·z the gradient ``weights`` (None = 1).

        Added to ``into`` in place if given.
        """
        for part, total, weight in zip(self.parts, self.values, self.weights, strict=True):
            if part.degree == 0:
                continue
            if part.degree == 1 and part.root == 1 and into is not None:
                into.baddbmm_(values, total.mT)
                into.add_(weight) if weights is None else into.addcmul_(weights, weight)
                continue
            grad = torch.bmm(values, total.mT)
            grad.add_(weight) if weights is None else grad.addcmul_(weights, weight)
            folded = part.fold(b, grad)
            assert folded is not None
            into = folded if into is None else into.add_(folded)
        return torch.zeros_like(b) if into is None else into
