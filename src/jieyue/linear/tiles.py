"""Cutting the work: a few heads and a chunk of positions at a time, so that what is computed together stays in cache.

A tile reads slices of q, k, v, wherever they lie in memory, brings them to the computing type (float32 at least), scales,
masks keys and values, applies the feature map, and finds the places of results. No whole tensor is copied.

Letters: B batch, H query heads, G key heads, R = H/G, N queries, M keys, D size of a query, V size of a value, T key heads
computed together (over rows of the batch), C positions of a chunk.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .features import FeatureMap

__all__ = ["Form", "Gradients", "KeyChunk", "Results", "Tile", "spans", "tiles", "wide_type"]

_HEADS_TOGETHER = (
    12  # as many 64 × 64 float32 matrices are 200 KiB: a product's three operands stay in a second-level cache
)


@dataclass(frozen=True, slots=True)
class Form:
    """How to compute: the map, its polynomial, the scale; ``direction`` 1 reads the past, −1 the future, 0 all keys."""

    features: FeatureMap
    polynomial: tuple[float, ...]
    scale: float
    direction: int
    chunk: int
    segment: ClassVar[int] = 16  # chunks between two marks

    def weigh(self, s: Tensor) -> Tensor:
        """The weights c0 + c1·s + c2·s² of the inner products s, which may be overwritten."""
        c0, c1, c2 = self.polynomial
        if c2:
            return s.mul(c2).add_(c1).mul_(s).add_(c0)
        if c1 != 1:
            s = s.mul_(c1)
        return s.add_(c0) if c0 else s

    def slope(self, grad: Tensor, s: Tensor) -> Tensor:
        """The gradient of s, given that of the weights, which may be overwritten."""
        _, c1, c2 = self.polynomial
        if c2:
            return grad.mul_(s.mul(2 * c2).add_(c1))
        return grad if c1 == 1 else grad.mul_(c1)


@dataclass(frozen=True, slots=True)
class KeyChunk:
    """Keys of one chunk: x as given, b = b(x), values v, all [T, C, ...], masked rows zero; ``present`` [T, C, 1] or None."""

    x: Tensor
    b: Tensor
    v: Tensor
    present: Tensor | None
    absent: Tensor | None


def wide_type(x: Tensor) -> torch.dtype:
    """Sums are kept in float32, in float64 for float64."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def spans(num_positions: int, chunk: int) -> list[slice]:
    """Consecutive slices of ``chunk`` positions, the last one shorter."""
    return [slice(start, min(start + chunk, num_positions)) for start in range(0, num_positions, chunk)]


@dataclass(frozen=True, slots=True)
class Tile:
    """Some rows of the batch and some key heads of one call."""

    place: tuple[slice, slice]
    groups: int
    form: Form
    key_mask: Tensor | None

    def rows(self, x: Tensor, span: slice) -> Tensor:
        """The place of these query rows in a tensor [B, H, N, ...]: [b, g, R, C, ...], never a copy."""
        return x.unflatten(1, (self.groups, -1))[(*self.place, slice(None), span)]

    def queries(self, x: Tensor, span: slice) -> Tensor:
        """The same rows to compute with: [T, R·C, ...] in the computing type."""
        return self.rows(x, span).to(wide_type(x)).flatten(2, 3).flatten(0, 1)

    def query_features(self, q: Tensor, span: slice) -> tuple[Tensor, Tensor]:
        """(x, b(x)) of the queries, x = scale·q."""
        x = self.queries(q, span)
        x = x if self.form.scale == 1 else x * self.form.scale
        return x, self._kernel[0](x)

    def columns(self, x: Tensor, span: slice) -> Tensor:
        """The place of these keys in a tensor [B, G, M, ...]: [b, g, C, ...], never a copy."""
        return x[(*self.place, span)]

    def raw_keys(self, k: Tensor, span: slice) -> tuple[Tensor, Tensor | None]:
        """Rows of k or v to compute with [T, C, ...], and which are masked [T, C, 1] (None: none)."""
        place = self.columns(k, span)
        absent = None
        if self.key_mask is not None:
            absent = ~self.key_mask[self.place[0], None, span, None].expand(*place.shape[:3], 1).flatten(0, 1)
        return place.to(wide_type(k)).flatten(0, 1), absent

    def keys(self, k: Tensor, v: Tensor, span: slice, level: Tensor | None = None) -> KeyChunk:
        """The keys of a chunk; ``level`` [T, 1, D] for maps over positions, whose features are e^(k − level)."""
        (x, absent), (v, _) = self.raw_keys(k, span), self.raw_keys(v, span)
        present = None
        if absent is not None:  # what padding holds, NaN too, must not matter
            present = (~absent).to(x.dtype)
            x, v = x.masked_fill(absent, 0.0), v.masked_fill(absent, 0.0)
        b = self._kernel[0](x) if level is None else (x - level).exp_()
        return KeyChunk(x, b if absent is None else b.masked_fill(absent, 0.0), v, present, absent)

    def see(self, weights: Tensor) -> Tensor:
        """Zeros [T, R·C, C], in place, where a query must not see a key of its own chunk."""
        square = weights.unflatten(1, (-1, weights.shape[2]))
        if self.form.direction > 0:
            square.tril_()
        else:
            square.triu_()
        return weights

    def visible(self, weights: Tensor, keys: KeyChunk) -> Tensor:
        """The same, and zeros for masked keys, whose weight is c0 otherwise."""
        weights = self.see(weights)
        return weights if keys.present is None or not self.form.polynomial[0] else weights.mul_(keys.present.mT)

    def pull(self, x: Tensor, b: Tensor, grad: Tensor) -> Tensor:
        """The gradient of x, given that of b(x)."""
        return self._kernel[1](x, b, grad)

    @property
    def _kernel(self) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor, Tensor], Tensor]]:
        assert self.form.features.kernel is not None
        return self.form.features.kernel


@dataclass(frozen=True, slots=True)
class Results:
    """Where a forward pass writes; ``floor`` [B, N] or None: the sum of weights below which a query saw nothing."""

    out: Tensor
    mass: Tensor
    floor: Tensor | None
    marks: Tensor

    def finish(self, tile: Tile, span: slice, summed: Tensor, mass: Tensor) -> None:
        """out = summed / mass, zeros where the mass is zero."""
        place = tile.rows(self.out, span)
        mass = mass.view(*place.shape[:4], 1)
        floor = 0.0 if self.floor is None else self.floor[tile.place[0], None, None, span, None]
        nothing = mass <= floor
        tile.rows(self.mass, span).copy_(mass.masked_fill(nothing, 0.0)[..., 0])
        torch.div(summed.view(place.shape), mass.masked_fill_(nothing, math.inf), out=place)


@dataclass(frozen=True, slots=True)
class Gradients:
    """What a backward pass reads (gradients of out and m, out itself, 1/m) and writes (dq, dk, dv)."""

    out: Tensor
    forward: Tensor
    inverse: Tensor
    mass: Tensor | None
    dq: Tensor
    dk: Tensor
    dv: Tensor

    def of_sums(self, tile: Tile, span: slice) -> tuple[Tensor, Tensor]:
        """The gradients g' [T, R·C, V] of Σ w v and l' [T, R·C, 1] of Σ w."""
        grad = tile.queries(self.out, span) * tile.queries(self.inverse, span)[..., None]
        grad_mass = torch.linalg.vecdot(grad, tile.queries(self.forward, span)).neg_()
        if self.mass is not None:
            grad_mass += tile.queries(self.mass, span)
        return grad, grad_mass[..., None]

    def put_query(self, tile: Tile, span: slice, grad: Tensor) -> None:
        """dq = scale · the gradient of scale·q."""
        place = tile.rows(self.dq, span)
        grad = grad.view(place.shape)
        if tile.form.scale == 1:
            place.copy_(grad)
        else:
            torch.mul(grad, tile.form.scale, out=place)

    def put_keys(self, tile: Tile, span: slice, keys: KeyChunk, dk: Tensor, dv: Tensor) -> None:
        """dk and dv, zero where the key is masked."""
        for target, grad in ((self.dk, dk), (self.dv, dv)):
            place = tile.columns(target, span)
            place.copy_((grad if keys.absent is None else grad.masked_fill(keys.absent, 0.0)).view(place.shape))


def tiles(k: Tensor, form: Form, key_mask: Tensor | None) -> Iterator[Tile]:
    """Tiles of about 12 key heads, more where these are short; on a GPU one tile of all."""
    batch, groups = k.shape[:2]
    together = _HEADS_TOGETHER * max(1, 64 // k.shape[2]) if k.device.type == "cpu" else batch * groups
    heads = min(groups, together)
    rows = max(1, together // groups)
    for start in range(0, batch, rows):
        for first in range(0, groups, heads):
            place = (slice(start, min(start + rows, batch)), slice(first, min(first + heads, groups)))
            yield Tile(place, groups, form, key_mask)
