"""Near keys by softmax, far keys by a linear map, one normaliser over both: ``local(128)+linear(elu)``.

    o_i = [Σ_near e^(s_ij − m_i) v_j + e^(−m_i) Σ_far φ(q_i)·φ(k_j) v_j] / [the same with 1 in the place of v_j]

with s_ij = D^−½ q_i·k_j. Near are the keys that a local pattern shows, and its first keys (``first(4)+local(128)``); far all other
allowed keys: those more than ``hi`` before the query and, where the future may be seen, those more than ``lo`` behind it. Either
side is causal linear attention of the sequence against itself shifted, so far is never formed by subtracting near from all;
``union`` joins the parts. The weights of the map must be ≥ 0, which those of every FeatureMap are.

Letters: B batch, H query heads, G key heads, N positions, D size of a query, V size of a value.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from jieyue.attention import Band, Pattern, attend, parse
from jieyue.attention.checks import check_tensors
from jieyue.attention.first_keys import FirstKeys
from jieyue.attention.partial import Partial
from jieyue.attention.scoring import Scoring
from jieyue.errors import InputError

from .checks import refuse_positions
from .features import FeatureMap, resolve
from .operator import autocast, sums_of_weights
from .packed import run_by_run
from .recent import Recent
from .state import LinearState
from .union import LinearPart, rows_from, rows_until, unite

__all__ = ["HybridState", "attend_hybrid", "near_window"]


def attend_hybrid(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    near: Pattern | str,
    features: str | FeatureMap = "elu",
    *,
    causal: bool = False,
    key_mask: Tensor | None = None,
    scale: float | None = None,
    near_scale: float | None = None,
    segments: Tensor | None = None,
) -> Tensor:
    """Softmax over the near keys and a linear map over all others, normalised together: out [B, H, N, V].

    ``near``: a local pattern around the query, perhaps with first keys ("first(4)+local(128)"). q [B, H, N, D]; k [B, G, N, D],
    v [B, G, N, V], H a multiple of G; key_mask [B, N] bool, True = keep. ``near_scale`` multiplies the scores of the near keys,
    default D^−½; ``scale`` multiplies q before the map, and segments are, as in ``attend_linear``. A query without any weight gives
    zeros and zero gradients.

    Cost: ``attend`` over near and one linear attention (two where the future is seen); memory beside theirs a few of out's
    size. Refuses, with ``InputError``: N ≠ M, a pattern that is no window around the query, global tokens, and the map ``softmax``.
    """
    form_map = resolve(features)
    check_tensors("attend_hybrid", q, k, v, key_mask)
    refuse_positions("attend_hybrid", form_map, "its weights have no common measure with those of near keys")
    if q.shape[2] != k.shape[2]:
        raise InputError(f"attend_hybrid: found {q.shape[2]} queries and {k.shape[2]} keys, expected as many")
    near = parse(near) if isinstance(near, str) else near
    ahead, _ = near_window(near)
    if causal and (ahead or near.first):
        near = near.causal()
    if near.first_past and not causal:
        raise InputError(
            f"attend_hybrid({near}): found first keys that only later queries see, expected causal=True with them, or first(n) "
            "without causal(...)"
        )
    used_scale = form_map.scale_for(scale, q.shape[3])
    q, k, v = autocast(q, k, v)
    dtype = q.dtype
    if q.device.type == "cpu" and dtype in (torch.float16, torch.bfloat16):
        q, k, v = q.float(), k.float(), v.float()  # so that the parts are rounded once, together
    alone = functools.partial(_attend_hybrid, near, (form_map, used_scale), causal, near_scale)
    if segments is not None:
        return run_by_run("attend_hybrid", alone, (q, k, v, key_mask), segments).to(dtype)
    return alone(q, k, v, key_mask).to(dtype)


def _attend_hybrid(
    near: Pattern,
    settings: tuple[FeatureMap, float],
    causal: bool,
    near_scale: float | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_mask: Tensor | None,
) -> Tensor:
    ahead, behind = near_window(near)
    softmax_part = attend(q, k, v, near, key_mask=key_mask, scale=near_scale, return_lse=True)
    assert isinstance(softmax_part, tuple)
    count = max(near.first, near.first_past)
    if count:  # they are near to every query
        others = (torch.arange(k.shape[2], device=k.device) >= count).expand(k.shape[0], -1)
        key_mask = others if key_mask is None else key_mask & others
    far = [_far_past(q, k, v, key_mask, behind + 1, settings)]
    if not causal:
        far.append(_far_future(q, k, v, key_mask, ahead + 1, settings))
    parts = [part for part in far if part is not None]
    return unite(softmax_part, parts) if parts else softmax_part[0]


def near_window(near: Pattern) -> tuple[int, int]:
    """(keys ahead of the query, keys behind it) of a pattern that is one window around it, first keys aside; ``InputError`` for
    others."""
    if near.global_rows:
        raise InputError(
            f"{near}+linear(...): found global tokens, expected first(n): which all see, but which do not see all"
        )
    band = near.bands[0] if near.bands else Band(1, None, None)
    if len(near.bands) > 1 or band.step > 1 or band.lo is None or band.hi is None or band.lo > 0 or band.hi < 0:
        raise InputError(
            f"{near}+linear(...): found near keys that are no window around the query, expected local(window): far is what "
            "lies beyond it"
        )
    return -band.lo, band.hi


def _far_past(
    q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, distance: int, settings: tuple[FeatureMap, float]
) -> LinearPart | None:
    """The keys at least ``distance`` before the query; None where there are none."""
    if distance >= q.shape[2]:
        return None
    mask = None if key_mask is None else key_mask[:, :-distance]
    far = (q[:, :, distance:], k[:, :, :-distance], v[:, :, :-distance], mask)
    out, mass, _ = sums_of_weights(*far, None, *settings, 1)
    return rows_from((out, mass), distance)


def _far_future(
    q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, distance: int, settings: tuple[FeatureMap, float]
) -> LinearPart | None:
    """The keys at least ``distance`` behind the query; None where there are none."""
    if distance >= q.shape[2]:
        return None
    mask = None if key_mask is None else key_mask[:, distance:]
    far = (q[:, :, :-distance], k[:, :, distance:], v[:, :, distance:], mask)
    out, mass, _ = sums_of_weights(*far, None, *settings, -1)
    return rows_until((out, mass), distance)


class HybridState:
    """What decoding with ``attend_hybrid`` must remember: the window's and the first keys and values, and the sums over all others.

    append(k, v) adds tokens, read(q) gives what these same tokens see; step t equals row t of the causal whole. Memory
    F·(V + 1) numbers for each key head and the window's keys and values; a token costs O(window·(D + V) + F·V). ``from_kept``:
    first keys count from each row's first key that is not hidden, as in ``attention.State``.
    """

    def __init__(
        self,
        near: Pattern,
        features: str | FeatureMap,
        scale: float | None = None,
        near_scale: float | None = None,
        *,
        from_kept: bool = False,
    ) -> None:
        self.near, self.features = near.causal(), resolve(features)
        refuse_positions("HybridState", self.features, "its sums cannot be continued")
        near_window(near)
        self.scale, self.near_scale = scale, near_scale
        self.recent = Recent(near_window(self.near)[1])
        self.first = FirstKeys(self.near.first_past, from_kept) if self.near.first_past else None
        self.far: LinearState | None = None
        self._seen = 0  # tokens appended
        self._left = 0  # tokens that left the window

    @property
    def nbytes(self) -> int:
        beside = 0 if self.first is None else self.first.nbytes
        return beside + self.recent.nbytes + (0 if self.far is None else self.far.nbytes)

    def append(self, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> None:
        """Adds keys [B, G, T, D] and values [B, G, T, V]; those with key_mask [B, T] False are seen by nobody."""
        if self.far is None:
            self.far = LinearState.empty(k, v, self.features, self.scale)
        if key_mask is not None:  # what is hidden may be anything
            k, v = (x.masked_fill(~key_mask[:, None, :, None], 0.0) for x in (k, v))
        if self.first is not None:
            self.first.append(k, v, key_mask, self._seen)
        self._sum(self.recent.push(k, v, key_mask))
        self._seen += k.shape[2]

    def settle(self) -> None:
        """Lets go of what the newest tokens alone needed, after they were read."""
        self._sum(self.recent.settle())

    def _sum(self, left: tuple[Tensor, Tensor, Tensor] | None) -> None:
        if left is not None:
            assert self.far is not None
            k, v, seen = left
            self.far.append(k, v, self._without_first(seen, self._left))
            self._left += k.shape[2]

    def _without_first(self, seen: Tensor, position: int) -> Tensor:
        """seen [B, T] of the tokens from ``position`` on, without those that are first keys of their row."""
        behind = (
            None if self.first is None else self.first.behind(range(position, position + seen.shape[1]), seen.device)
        )
        return seen if behind is None else seen & behind

    def read(self, q: Tensor) -> Tensor:
        """out [B, H, T, V] of the newest T tokens."""
        k, v, seen = self.recent.read(q.shape[2])
        assert self.far is not None
        seen = self._without_first(seen, self._seen - k.shape[2])
        past = k.shape[2] - q.shape[2]
        dtype = q.dtype
        if q.device.type == "cpu" and dtype in (torch.float16, torch.bfloat16):
            q, k, v = q.float(), k.float(), v.float()
        window = Pattern(self.near.bands)
        near = attend(q, k, v, window, key_mask=seen, scale=self.near_scale, q_offset=past, return_lse=True)
        assert isinstance(near, tuple)
        if self.first is not None:
            scoring = Scoring(q.shape[-1] ** -0.5 if self.near_scale is None else self.near_scale, self._seen)
            beside = scoring.attend([self.first.part(q, scoring)], q.dtype, with_sinks=False)
            whole = Partial(*near).merge(beside)
            near = whole.out, whole.lse
        return unite(near, [self._read_far(q, k, v, seen, past)]).to(dtype)

    def _read_far(self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor, past: int) -> LinearPart:
        """Token t of the newest reads the sums, and of those held the keys up to t − distance."""
        assert self.far is not None
        distance = min(self.recent.window + 1 - past, q.shape[2])
        out, mass = self.far.read_weights(q[:, :, :distance])
        count = q.shape[2] - distance
        if not count:
            return out, mass
        late, late_mass, _ = sums_of_weights(
            q[:, :, distance:], k[:, :, :count], v[:, :, :count], seen[:, :count], self.far.sums, self.features,
            self.far.scale, 1,
        )  # fmt: skip
        return torch.cat([out, late], 2), torch.cat([mass, late_mass], 2)

    def reorder(self, index: Tensor) -> None:
        """Row b becomes what row index[b] was."""
        self.recent.reorder(index)
        if self.first is not None:
            self.first.reorder(index)
        if self.far is not None:
            self.far.reorder(index)

    def crop(self, length: int) -> None:
        """Refused: what has been summed cannot be taken back exactly."""
        raise InputError(
            f"HybridState.crop({length}): found sums over the far tokens, expected no cropping: taking keys back by subtraction "
            "is not exact"
        )

    def tensors(self) -> dict[str, Tensor]:
        """What to save; ``load`` takes it back."""
        found = self.recent.tensors() | ({} if self.far is None else self.far.tensors())
        if self.first is not None:
            found |= self.first.tensors() | {"span": torch.tensor([self._left, self._seen])}
        return found

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Contents saved by ``tensors``."""
        self.recent.load(tensors)
        self.far = None
        if self.recent.held is not None:
            self.far = LinearState.empty(*self.recent.held[:2], self.features, self.scale)
            self.far.load(tensors)
        if self.first is not None and "span" in tensors:
            self.first.load(tensors)
            self._left, self._seen = (int(x) for x in tensors["span"])
