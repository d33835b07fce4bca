"""What decoding must remember: the keys and values of the past, kept and read as the pattern needs them.

``append(k, v)`` adds the newest tokens, ``read(q)`` gives their attention over what the (causal) pattern shows; step t
equals row t of ``attend`` over the whole sequence.

    local(w)       keeps the last w + 1 tokens in a ring: constant memory, w + 1 keys read per step
    atrous(r)      keeps all tokens, reads n/r of them per step, as a strided view
    sparse(r, w)   keeps all tokens, reads about n/r + w of them per step
    first(c)       keeps c tokens beside the others and reads them at each step

Letters: B batch, H query heads, G key heads, R = H/G, T new tokens, C tokens that fit the buffers, D size of a query or
key, V of a value; a position counts tokens from the very first.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from jieyue.errors import InputError

from .first_keys import FirstKeys
from .operator import attend
from .partial import Partial
from .pattern import Band, Pattern
from .scoring import Scoring

__all__ = ["State"]

_Chunk = tuple[Tensor, Tensor, Tensor | None]


class State:
    """The memory of one layer while decoding; it changes only itself. ``pattern`` is made causal (``global`` ones refused).

    ``length``: tokens seen; ``keys_read``: keys that the last ``read`` of one token touched; ``nbytes``: what is held.
    A ring keeps ``slack`` tokens more than the window, so that ``crop`` can take back that many and one. ``from_kept``: the
    pattern's first keys count from each row's first key that is not hidden, so that a left-padded row decodes as it would alone
    (as ``attend`` with segments −1 for the padding), else from position 0.

    >>> from jieyue.attention import sparse
    >>> state = State(sparse(4))
    >>> state.append(torch.randn(1, 2, 9, 8), torch.randn(1, 2, 9, 8))
    >>> state.read(torch.randn(1, 6, 9, 8)).shape, state.length
    (torch.Size([1, 6, 9, 8]), 9)
    """

    def __init__(self, pattern: Pattern, slack: int = 0, *, from_kept: bool = False) -> None:
        if pattern.global_rows:
            raise InputError(
                f"State({pattern}): found global tokens, which see later keys; expected a causal pattern: give pattern.causal()"
            )
        self.pattern = pattern.causal()
        ends = [band.hi for band in self.pattern.bands]
        self._reach = None if None in ends else max((hi for hi in ends if hi is not None), default=0)
        self._ring = None if self._reach is None else self._reach + 1 + slack
        self.slack = slack
        self.length = 0
        self.keys_read = 0
        self._first = 0  # the oldest position held
        self._newest = 0  # how many tokens the last append brought
        self._held: _Chunk | None = None  # k [B, G, C, D], v [B, G, C, V], key mask [B, C] once a masked key has come
        count = self.pattern.first_past
        self._first_keys = FirstKeys(count, from_kept) if count else None
        self._chunk: _Chunk | None = None  # a long append to a ring, with the window before it, until it is read

    @property
    def nbytes(self) -> int:
        tensors = [x for part in (self._held, self._chunk) if part is not None for x in part if x is not None]
        beside = 0 if self._first_keys is None else self._first_keys.nbytes
        return beside + sum(x.numel() * x.element_size() for x in tensors)

    def append(self, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> None:
        """Adds T tokens: k [B, G, T, D], v [B, G, T, V]; key_mask [B, T] bool, False = a token that nobody sees (padding)."""
        self._check(k, v, key_mask)
        count = k.shape[2]
        if key_mask is not None:  # what is hidden may be anything
            k, v = (x.masked_fill(~key_mask[:, None, :, None], 0.0) for x in (k, v))
        if self._first_keys is not None:
            self._first_keys.append(k, v, key_mask, self.length)
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

    def read(
        self,
        q: Tensor,
        scale: float | None = None,
        *,
        sinks: Tensor | None = None,
        softcap: float | None = None,
        offset_bias: Tensor | None = None,
    ) -> Tensor:
        """Attention of the newest q.shape[2] tokens: q [B, H, T, D] -> [B, H, T, V]. A long chunk can be read once.

        sinks [H], softcap and offset_bias [H or 1, T + length − 1] as in ``attend`` of these queries over all ``length`` keys.
        """
        count = q.shape[2] if q.dim() == 4 else 0
        if not 1 <= count <= self._newest or self._held is None:
            raise InputError(
                f"State.read: q has shape {list(q.shape)}, expected [B, H, T, D] with T from 1 to the {self._newest} "
                "tokens of the last append"
            )
        if offset_bias is not None and offset_bias.shape[-1] != count + self.length - 1:
            raise InputError(
                f"State.read: offset_bias has shape {list(offset_bias.shape)}, expected [{q.shape[1]} or 1, "
                f"{count + self.length - 1}]: {count} queries and {self.length} keys"
            )
        usual = q.shape[-1] ** -0.5
        worn = Scoring(usual if scale is None else scale, self.length, sinks, softcap, offset_bias)
        if count == 1:
            return self._read_one(q, worn)
        oldest = 0 if self._reach is None else max(0, self.length - count - self._reach)
        chunk = self._chunk
        if chunk is None:
            floor = 0 if self._first_keys is None else self._first_keys.floor
            if max(oldest, min(floor, self.length - count)) < self._first:
                raise InputError("State.read: found a chunk that was read already, expected one read for each append")
            oldest = max(oldest, self._first)
            chunk = self._gather(range(oldest, self.length))
            assert chunk is not None
        self._chunk = None
        return self._read_chunk(q, chunk, worn)

    def _read_chunk(self, q: Tensor, chunk: _Chunk, worn: Scoring) -> Tensor:
        """Several queries over the keys of ``chunk``, which end with their own, and over the first keys."""
        k, v, key_mask = chunk
        count, num_keys = q.shape[2], k.shape[2]
        bias = None if worn.offset_bias is None else worn.offset_bias[:, : count + num_keys - 1]
        pattern, whole = self.pattern, Partial.empty(q, v)
        if self._first_keys is not None:
            whole = worn.attend([self._first_keys.part(q, worn)], q.dtype, with_sinks=False)
            behind = self._first_keys.behind(range(self.length - num_keys, self.length), k.device)
            pattern = Pattern(self.pattern.bands or (Band(1, 0, 0),))
            if not self.pattern.bands:
                behind = torch.zeros(k.shape[0], num_keys, dtype=torch.bool, device=k.device)
            if behind is not None:
                key_mask = behind if key_mask is None else key_mask & behind
        found = attend(
            q, k, v, pattern, key_mask=key_mask, scale=worn.scale, q_offset=num_keys - count, return_lse=True,
            sinks=worn.sinks, softcap=worn.softcap, offset_bias=bias,
        )  # fmt: skip
        assert isinstance(found, tuple)
        return found[0] if self._first_keys is None else whole.merge(Partial(*found)).out.to(q.dtype)

    def reorder(self, index: Tensor) -> None:
        """Row b becomes what row index[b] was (beams; more or fewer rows are fine)."""
        for name in ("_held", "_chunk"):
            part: _Chunk | None = getattr(self, name)
            if part is not None:
                k, v, seen = part
                picked = None if seen is None else seen.index_select(0, index)
                setattr(self, name, (k.index_select(0, index), v.index_select(0, index), picked))
        if self._first_keys is not None:
            self._first_keys.reorder(index)

    def crop(self, length: int) -> None:
        """Forgets the tokens from position ``length`` on. A ring refuses when what came before them is gone already."""
        if not 0 <= length <= self.length:
            raise InputError(f"State.crop(length={length}): expected between 0 and the {self.length} tokens seen")
        floor = 0 if self._first_keys is None else self._first_keys.floor
        needed = 0 if self._reach is None else max(floor, length - self._reach)
        if self._first > needed and needed < length:
            raise InputError(
                f"State.crop(length={length}): of {self.length} tokens {self.pattern} keeps those from {self._first} on, "
                f"expected to take back at most {1 + self.slack}; make the state with State(pattern, slack=...)"
            )
        self.length, self._newest, self._chunk = length, 0, None
        self._first = min(self._first, length)
        if self._first_keys is not None:
            self._first_keys.crop(length)

    def to_dict(self) -> dict[str, Tensor]:
        """What is held, as tensors (for safetensors or torch.save): k, v, perhaps key_mask, in order of position; span."""
        tensors = {"span": torch.tensor([self._first, self.length])}
        held = self._gather(range(self._first, self.length))
        if held is not None:
            tensors |= {"k": held[0].contiguous(), "v": held[1].contiguous()}
            if held[2] is not None:
                tensors["key_mask"] = held[2].contiguous()
        return tensors if self._first_keys is None else tensors | self._first_keys.tensors()

    @classmethod
    def from_dict(
        cls, pattern: Pattern, tensors: Mapping[str, Tensor], slack: int = 0, *, from_kept: bool = False
    ) -> State:
        """The state that ``to_dict`` described."""
        state = cls(pattern, slack, from_kept=from_kept)
        if state._first_keys is not None:
            state._first_keys.load(tensors)
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

    def _read_one(self, q: Tensor, worn: Scoring) -> Tensor:
        """One query: the scores of all bands' keys side by side, one softmax."""
        assert self._held is not None
        held_k, held_v, seen = self._held
        parts: list[tuple[Tensor, Tensor]] = []
        for band in self.pattern.bands:
            positions = self._visible(band)
            if not positions:
                continue
            behind = None if self._first_keys is None else self._first_keys.behind(positions, q.device)
            slots = self._slots(positions, q.device, ordered=worn.offset_bias is not None or behind is not None)
            shown = None if seen is None else seen[:, slots]
            if behind is not None:
                shown = behind if shown is None else shown & behind
            logits = worn.logits(q, held_k[:, :, slots], positions)
            if shown is not None:
                logits = logits.masked_fill(~shown[:, None, None, None], -torch.inf)
            parts.append((logits, held_v[:, :, slots]))
        if self._first_keys is not None:
            parts.append(self._first_keys.part(q, worn))
        self.keys_read = sum(logits.shape[-1] for logits, _ in parts)
        if not parts:
            return torch.zeros_like(q[..., :1]).expand(*q.shape[:3], held_v.shape[3]).contiguous()
        return worn.attend(parts, q.dtype, with_sinks=True).out

    def _visible(self, band: Band) -> range:
        """The positions that the newest token sees through a band, ascending."""
        assert band.lo is not None and band.lo >= 0
        last = self.length - 1 - band.lo
        held = self._first if self._first_keys is None else max(self._first, self._first_keys.floor)
        oldest = held if band.hi is None else max(held, self.length - 1 - band.hi)
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
