"""A linear map cut to a band: linear attention in which a query reads the keys at most ``window`` positions away.

    o_i = Σ_j w_ij v_j / Σ_j w_ij,   w_ij = φ(scale·q_i)·φ(k_j),   |i − j| ≤ window,  or causally 0 ≤ i − j ≤ window

Far keys make linear attention an average over everything; the author of the maps found that cutting them off helps
(J. Su, kexue.fm 8338). Cut into blocks of L = window + 1 positions, the band of a query is a prefix or the whole of its own
block, a suffix of the block before and a prefix of the block behind, and each of these is linear attention within a block:

    past    j ≤ i in the own block, and j > i − L in the block before
    future  j ≥ i in the own block, and j < i + L in the block behind

so the time is O(N·(C·D + F·V)) whatever the window, sums are only ever added to, and the parts have one normaliser (``union``).

Letters: B batch, H query heads, G key heads, N positions, D size of a query, V size of a value, L positions of a block.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn.functional import pad

from jieyue.attention.checks import check_tensors
from jieyue.errors import InputError

from .checks import refuse_positions
from .features import FeatureMap, resolve
from .operator import autocast, sums_of_weights
from .packed import run_by_run
from .recent import Recent
from .union import LinearPart, rows_from, rows_until, unite

__all__ = ["WindowState", "attend_window"]


def attend_window(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    features: str | FeatureMap,
    window: int,
    *,
    causal: bool = False,
    key_mask: Tensor | None = None,
    scale: float | None = None,
    segments: Tensor | None = None,
) -> Tensor:
    """Linear attention within a window: out [B, H, N, V], like ``attend_linear`` where |i − j| ≤ window.

    q [B, H, N, D]; k [B, G, N, D], v [B, G, N, V], H a multiple of G; key_mask [B, N] bool, True = keep; scale as in
    ``attend_linear``, segments too. A query whose weights are all zero gives zeros and zero gradients.

    Cost: time that of three linear attentions (causal two), whatever the window; memory for copies of q, k and v in blocks
    where N is no multiple of window + 1 or B > 1.

    Refuses, with ``InputError``: N ≠ M, a negative window, and the map ``softmax``, whose keys are normalised over all positions.
    """
    form_map = resolve(features)
    check_tensors("attend_window", q, k, v, key_mask)
    refuse_positions("attend_window", form_map, "a band of it would not sum to one")
    if q.shape[2] != k.shape[2]:
        raise InputError(f"attend_window: found {q.shape[2]} queries and {k.shape[2]} keys, expected as many")
    check_window(window)
    used_scale = form_map.scale_for(scale, q.shape[3])
    q, k, v = autocast(q, k, v)
    if segments is not None:
        alone = functools.partial(_attend_window, form_map, used_scale, window, causal)
        return run_by_run("attend_window", alone, (q, k, v, key_mask), segments)
    return _attend_window(form_map, used_scale, window, causal, q, k, v, key_mask)


def _attend_window(
    form_map: FeatureMap,
    used_scale: float,
    window: int,
    causal: bool,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_mask: Tensor | None,
) -> Tensor:
    if window >= q.shape[2] - 1:
        out, _, _ = sums_of_weights(q, k, v, key_mask, None, form_map, used_scale, 1 if causal else 0)
        return out
    blocks = _Blocks(q, k, v, key_mask, window + 1, form_map, used_scale)
    parts = [blocks.own(1 if causal else 0)]
    if window:
        parts.append(blocks.before())
        if not causal:
            parts.append(blocks.behind())
    out = unite(None, parts) if len(parts) > 1 else parts[0][0]
    return blocks.unfold(out).to(q.dtype)


def check_window(window: int) -> None:
    """A whole number from 0 on."""
    if isinstance(window, bool) or not isinstance(window, int) or window < 0:
        raise InputError(f"window={window!r}: expected a whole number of positions, at least 0")


class _Blocks:
    """The call cut into blocks; a part is (out [B·n, H, L, V], sum of weights [B·n, H, L]) of n blocks in each row."""

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        key_mask: Tensor | None,
        length: int,
        features: FeatureMap,
        scale: float,
    ) -> None:
        self.num_rows, self.num_positions, self.length = q.shape[0], q.shape[2], length
        self.count = -(-q.shape[2] // length)
        padding = self.count * length - q.shape[2]
        if padding:
            q, k, v = (pad(x, (0, 0, 0, padding)) for x in (q, k, v))
            seen = torch.ones(k.shape[0], self.num_positions, dtype=torch.bool, device=k.device)
            key_mask = pad(seen if key_mask is None else key_mask, (0, padding))
        self.q, self.k, self.v, self.key_mask = q, k, v, key_mask
        self.features, self.scale = features, scale

    def own(self, direction: int) -> LinearPart:
        """Each block with itself: direction 1 up to the query, 0 all of it."""
        every = slice(0, self.count)
        return self._part(every, every, slice(None), slice(None), direction)

    def before(self) -> LinearPart:
        """Row r of a block reads the rows from r + 1 on of the block before."""
        part = self._part(slice(1, self.count), slice(0, self.count - 1), slice(0, -1), slice(1, None), -1)
        return self._blocks_around(rows_until(part, 1), 1, 0)

    def behind(self) -> LinearPart:
        """Row r of a block reads the rows up to r − 1 of the block behind."""
        part = self._part(slice(0, self.count - 1), slice(1, self.count), slice(1, None), slice(0, -1), 1)
        return self._blocks_around(rows_from(part, 1), 0, 1)

    def unfold(self, out: Tensor) -> Tensor:
        """[B·n, H, L, V] as [B, H, N, V]."""
        rows = out.transpose(1, 2).reshape(self.num_rows, self.count * self.length, out.shape[1], out.shape[3])
        return rows[:, : self.num_positions].transpose(1, 2)

    def _part(self, queries: slice, keys: slice, query_rows: slice, key_rows: slice, direction: int) -> LinearPart:
        q = self._folded(self.q, queries)[:, :, query_rows]
        k, v = (self._folded(x, keys)[:, :, key_rows] for x in (self.k, self.v))
        mask = None
        if self.key_mask is not None:
            mask = self.key_mask.unflatten(1, (self.count, self.length))[:, keys].flatten(0, 1)[:, key_rows]
        out, mass, _ = sums_of_weights(q, k, v, mask, None, self.features, self.scale, direction)
        return out, mass

    def _folded(self, x: Tensor, blocks: slice) -> Tensor:
        """[B, H, n·L, D] -> the chosen blocks [B·n', H, L, D], a view where memory allows."""
        rows = x.transpose(1, 2).unflatten(1, (self.count, self.length))[:, blocks]
        return rows.flatten(0, 1).transpose(1, 2)

    def _blocks_around(self, part: LinearPart, before: int, behind: int) -> LinearPart:
        """A part of all blocks but the first or the last, as one of all blocks."""
        out, mass = (x.unflatten(0, (self.num_rows, -1)) for x in part)
        out = pad(out, (0, 0, 0, 0, 0, 0, before, behind))
        return out.flatten(0, 1), pad(mass, (0, 0, 0, 0, before, behind)).flatten(0, 1)


class WindowState:
    """What decoding with ``attend_window`` must remember: the last ``window`` keys and values, and the newest.

    append(k, v) adds tokens, read(q) gives what these same tokens see; step t equals row t of the causal whole. A token costs
    O(window·(D + V)).
    """

    def __init__(self, features: str | FeatureMap, window: int, scale: float | None = None) -> None:
        self.features, self.window, self.scale = resolve(features), window, scale
        refuse_positions("WindowState", self.features, "a band of it would not sum to one")
        check_window(window)
        self.recent = Recent(window)

    @property
    def nbytes(self) -> int:
        return self.recent.nbytes

    def append(self, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> None:
        """Adds keys [B, G, T, D] and values [B, G, T, V]; those with key_mask [B, T] False are seen by nobody."""
        self.recent.push(k, v, key_mask)

    def settle(self) -> None:
        """Lets go of what the newest tokens alone needed, after they were read."""
        self.recent.settle()

    def read(self, q: Tensor) -> Tensor:
        """out [B, H, T, V] of the newest T tokens."""
        k, v, seen = self.recent.read(q.shape[2])
        past = k.shape[2] - q.shape[2]
        if q.shape[2] == 1:
            used_scale = self.features.scale_for(self.scale, q.shape[3])
            return sums_of_weights(q, k, v, seen, None, self.features, used_scale, 0)[0]
        out = attend_window(
            pad(q, (0, 0, past, 0)), k, v, self.features, self.window, causal=True, key_mask=seen, scale=self.scale
        )
        return out[:, :, past:]

    def reorder(self, index: Tensor) -> None:
        """Row b becomes what row index[b] was."""
        self.recent.reorder(index)

    def crop(self, length: int) -> None:
        """Refused: keys that left the window are gone."""
        raise InputError(
            f"WindowState.crop({length}): found a window of keys, expected no cropping; keep what came before"
        )

    def tensors(self) -> dict[str, Tensor]:
        """What to save; ``load`` takes it back."""
        return self.recent.tensors()

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Contents saved by ``tensors``."""
        self.recent.load(tensors)
