"""What decoding must remember: the keys and values of the past, kept and read as the pattern needs them.

``append(k, v)`` adds the newest tokens, ``read(q)`` gives their attention over what the (causal) pattern shows; step t
equals row t of ``attend`` over the whole sequence.

    local(w)       keeps the last w + 1 tokens in a ring: constant memory, w + 1 keys read per step
    atrous(r)      keeps all tokens, reads n/r of them per step, as a strided view
    sparse(r, w)   keeps all tokens, reads about n/r + w of them per step

Letters: B batch, H query heads, G key heads, R = H/G, T new tokens, C tokens that fit the buffers, D size of a query or
key, V of a value; a position counts tokens from the very first.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from jieyue.errors import InputError

from .operator import attend
from .pattern import Band, Pattern

__all__ = ["State"]

_Chunk = tuple[Tensor, Tensor, Tensor | None]


class State:
    """The memory of one layer while decoding; it changes only itself. ``pattern`` is made causal.

    ``length``: tokens seen; ``keys_read``: keys that the last ``read`` of one token touched; ``nbytes``: what is held.
    A ring keeps ``slack`` tokens more than the window, so that ``crop`` can take back that many and one.

    >>> from jieyue.attention import sparse
    >>> state = State(sparse(4))
    >>> state.append(torch.randn(1, 2, 9, 8), torch.randn(1, 2, 9, 8))
    >>> state.read(torch.randn(1, 6, 9, 8)).shape, state.length
    (torch.Size([1, 6, 9, 8]), 9)
    """

    def __init__(self, pattern: Pattern, slack: int = 0) -> None:
        self.pattern = pattern.causal()
        ends = [band.hi for band in self.pattern.bands]
        self._reach = None if None in ends else max(hi for hi in ends if hi is not None)
        self._ring = None if self._reach is None else self._reach + 1 + slack
        self.slack = slack
        self.length = 0
        self.keys_read = 0
        self._first = 0  # the oldest position held
        self._newest = 0  # how many tokens the last append brought
        self._held: _Chunk | None = None  # k [B, G, C, D], v [B, G, C, V], key mask [B, C] once a masked key has come
        self._chunk: _Chunk | None = None  # a long append to a ring, with the window before it, until it is read

    @property
    def nbytes(self) -> int:
        tensors = [x for part in (self._held, self._chunk) if part is not None for x in part if x is not None]
        return sum(x.numel() * x.element_size() for x in tensors)

    def append(self, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> None:
        """Adds T tokens: k [B, G, T, D], v [B, G, T, V]; key_mask [B, T] bool, False = a token that nobody sees (padding)."""
        self._check(k, v, key_mask)
        count = k.shape[2]
        self._chunk = None
        if self._ring is not None and count > 1 + self.slack and self.length + count > self._ring:
            assert self._reach is not None
            past = self._gather(range(max(self._first, self.length - self._reach), self.length))
            self._chunk = (k, v, key_mask) if past is None else _joined(past, (k, v, key_mask))
        kept = count if self._ring is None else min(count, self._ring)
        self._make_room(k, v, self.length + count, key_mask is not None)
        self.length += count
        self._newest = count
        self._write(range(self.length - kept, self.length), k, v, key_mask)
        if self._ring is not None:
            self._first = max(self._first, self.length - self._ring)

    def read(self, q: Tensor, scale: float | None = None) -> Tensor:
        """Attention of the newest q.shape[2] tokens: q [B, H, T, D] -> [B, H, T, V]. A long chunk can be read once."""
        count = q.shape[2] if q.dim() == 4 else 0
        if not 1 <= count <= self._newest or self._held is None:
            raise InputError(
                f"State.read: q has shape {list(q.shape)}, expected [B, H, T, D] with T from 1 to the {self._newest} "
                "tokens of the last append"
            )
        if count == 1:
            return self._read_one(q, q.shape[-1] ** -0.5 if scale is None else scale)
        chunk = self._chunk
        if chunk is None:
            oldest = 0 if self._reach is None else max(0, self.length - count - self._reach)
            if oldest < self._first:
                raise InputError("State.read: found a chunk that was read already, expected one read for each append")
            chunk = self._gather(range(oldest, self.length))
            assert chunk is not None
        self._chunk = None
        k, v, key_mask = chunk
        out = attend(q, k, v, self.pattern, key_mask=key_mask, scale=scale, q_offset=k.shape[2] - count)
        assert isinstance(out, Tensor)
        return out

    def reorder(self, index: Tensor) -> None:
        """Row b becomes what row index[b] was (beams; more or fewer rows are fine)."""
        for name in ("_held", "_chunk"):
            part: _Chunk | None = getattr(self, name)
            if part is not None:
                k, v, seen = part
                picked = None if seen is None else seen.index_select(0, index)
                setattr(self, name, (k.index_select(0, index), v.index_select(0, index), picked))

    def crop(self, length: int) -> None:
        """Forgets the tokens from position ``length`` on. A ring refuses when what came before them is gone already."""
        if not 0 <= length <= self.length:
            raise InputError(f"State.crop(length={length}): expected between 0 and the {self.length} tokens seen")
        if self._reach is not None and self._first > max(0, length - self._reach):
            raise InputError(
                f"State.crop(length={length}): of {self.length} tokens {self.pattern} keeps those from {self._first} on, "
                f"expected to take back at most {1 + self.slack}; make the state with State(pattern, slack=...)"
            )
        self.length, self._newest, self._chunk = length, 0, None

    def to_dict(self) -> dict[str, Tensor]:
        """What is held, as tensors (for safetensors or torch.save): k, v, perhaps key_mask, in order of position; span."""
        tensors = {"span": torch.tensor([self._first, self.length])}
        held = self._gather(range(self._first, self.length))
        if held is not None:
            tensors |= {"k": held[0].contiguous(), "v": held[1].contiguous()}
            if held[2] is not None:
                tensors["key_mask"] = held[2].contiguous()
        return tensors

    @classmethod
    def from_dict(cls, pattern: Pattern, tensors: Mapping[str, Tensor], slack: int = 0) -> State:
        """The state that ``to_dict`` described."""
        state = cls(pattern, slack)
        first, length = (int(x) for x in tensors["span"])
        state._first = state.length = first
        if "k" in tensors:
            state._make_room(tensors["k"], tensors["v"], length, "key_mask" in tensors)
            state.length = length
            state._write(range(first, length), tensors["k"], tensors["v"], tensors.get("key_mask"))
        if state._ring is not None:
            state._first = max(first, length - state._ring)
        return state

    def _check(self, k: Tensor, v: Tensor, key_mask: Tensor | None) -> None:
        if k.dim() != 4 or v.dim() != 4 or k.shape[:3] != v.shape[:3] or 0 in k.shape:
            raise InputError(
                f"State.append: k has shape {list(k.shape)} and v {list(v.shape)}, expected [B, G, T, D] and [B, G, T, V]"
            )
        if key_mask is not None and (key_mask.shape != (k.shape[0], k.shape[2]) or key_mask.dtype != torch.bool):
            raise InputError(
                f"State.append: key_mask has shape {list(key_mask.shape)} and dtype {key_mask.dtype}, "
                f"expected {[k.shape[0], k.shape[2]]} and bool"
            )
        for name, x, held in zip("kv", (k, v), self._held or (), strict=False):
            assert held is not None
            found, expected = (x.shape[0], x.shape[1], x.shape[3]), (held.shape[0], held.shape[1], held.shape[3])
            if found != expected or x.dtype != held.dtype or x.device != held.device:
                raise InputError(
                    f"State.append: {name} has shape {list(x.shape)}, {x.dtype} on {x.device}; expected B, G and the last "
                    f"size {list(expected)}, {held.dtype} on {held.device}, as in what is held"
                )

    def _make_room(self, k: Tensor, v: Tensor, length: int, masked: bool) -> None:
        """Buffers for ``length`` tokens; a ring never grows beyond its own, others grow by a quarter."""
        need = length if self._ring is None else min(length, self._ring)
        room = 0 if self._held is None else self._held[0].shape[2]
        if need > room:
            grown = max(need, room + room // 4, 64)
            room = grown if self._ring is None else min(grown, self._ring)
            old = self._held
            new_k = k.new_zeros(*k.shape[:2], room, k.shape[3])
            new_v = v.new_zeros(*v.shape[:2], room, v.shape[3])
            seen = None if old is None or old[2] is None else old[2].new_ones(k.shape[0], room)
            if old is not None:  # a ring that still grows has not wrapped yet: slots are positions
                new_k[:, :, : old[0].shape[2]], new_v[:, :, : old[0].shape[2]] = old[0], old[1]
                if seen is not None and old[2] is not None:
                    seen[:, : old[0].shape[2]] = old[2]
            self._held = (new_k, new_v, seen)
        assert self._held is not None
        if masked and self._held[2] is None:
            self._held = (*self._held[:2], torch.ones(k.shape[0], room, dtype=torch.bool, device=k.device))

    def _write(self, positions: range, k: Tensor, v: Tensor, key_mask: Tensor | None) -> None:
        """Stores the last len(positions) of the given tokens."""
        assert self._held is not None
        if self._held[0].is_inference() and not torch.is_inference_mode_enabled():  # such a tensor takes no update
            k_held, v_held, seen = self._held
            self._held = (k_held.clone(), v_held.clone(), None if seen is None else seen.clone())
        held_k, held_v, seen = self._held
        slots = self._slots(positions, k.device)
        count = len(positions)
        held_k[:, :, slots], held_v[:, :, slots] = k[:, :, -count:], v[:, :, -count:]
        if seen is not None:
            seen[:, slots] = True if key_mask is None else key_mask[:, -count:]

    def _slots(self, positions: range, device: torch.device, ordered: bool = True) -> slice | Tensor:
        """Where these positions lie: a slice where they lie in a row, else a list."""
        if self._ring is None:
            return slice(positions.start, positions.stop, positions.step)
        first, last = positions[0] % self._ring, positions[-1] % self._ring
        if first + positions[-1] - positions[0] == last:
            return slice(first, last + 1, positions.step)
        if not ordered and len(positions) == self._ring:
            return slice(0, self._ring)
        return torch.arange(positions.start, positions.stop, positions.step, device=device) % self._ring

    def _gather(self, positions: range) -> _Chunk | None:
        """k, v and key mask at these positions, in order; views where they lie in order."""
        if self._held is None or len(positions) == 0:
            return None
        slots = self._slots(positions, self._held[0].device)
        k, v, seen = self._held
        return k[:, :, slots], v[:, :, slots], None if seen is None else seen[:, slots]

    def _read_one(self, q: Tensor, scale: float) -> Tensor:
        """One query: the scores of all bands' keys side by side, one softmax."""
        assert self._held is not None
        held_k, held_v, seen = self._held
        batch, groups = held_k.shape[:2]
        queries = q.reshape(batch, groups, -1, q.shape[-1])
        shown = [positions for band in self.pattern.bands if (positions := self._visible(band))]
        read = [self._slots(positions, q.device, ordered=False) for positions in shown]
        if not read:
            return torch.zeros_like(q[..., :1]).expand(*q.shape[:3], held_v.shape[3]).contiguous()
        wide = torch.promote_types(q.dtype, torch.float32)
        scores = [(queries @ held_k[:, :, slots].transpose(-1, -2)).to(wide) * scale for slots in read]
        if seen is not None:
            scores = [
                s.masked_fill(~seen[:, None, None, slots], -torch.inf) for s, slots in zip(scores, read, strict=True)
            ]
        weights = torch.cat(scores, -1).softmax(-1)
        if seen is not None:
            weights = weights.nan_to_num(0.0)  # a query that sees nothing
        sizes = [s.shape[-1] for s in scores]
        self.keys_read = sum(sizes)
        parts = weights.to(q.dtype).split(sizes, -1)
        out = sum(part @ held_v[:, :, slots] for part, slots in zip(parts, read, strict=True))
        assert isinstance(out, Tensor)
        return out.reshape(*q.shape[:3], -1)

    def _visible(self, band: Band) -> range:
        """The positions that the newest token sees through a band, ascending."""
        assert band.lo is not None and band.lo >= 0
        last = self.length - 1 - band.lo
        oldest = self._first if band.hi is None else max(self._first, self.length - 1 - band.hi)
        return (
            range(last - (last - oldest) // band.step * band.step, last + 1, band.step) if last >= oldest else range(0)
        )


def _joined(past: _Chunk, new: _Chunk) -> _Chunk:
    """One chunk after another; a missing key mask means that all are seen."""
    masks = [
        torch.ones(k.shape[0], k.shape[2], dtype=torch.bool, device=k.device) if m is None else m
        for k, _, m in (past, new)
    ]
    mask = None if past[2] is None and new[2] is None else torch.cat(masks, 1)
    return torch.cat([past[0], new[0]], 2), torch.cat([past[1], new[1]], 2), mask
