"""What a model asks of its attention, read from the mask that it asks transformers for, and handed on with it.

transformers builds a mask from a ``mask_function``: causal, bidirectional, sliding, unions and intersections of these, packed
documents, overlays of images. ``asked_mask``, registered in the place of the mask factory, reads it as an interval of offsets:

    query i sees key j  <=>  lo <= i - j <= hi,  and key j is kept

and hands on an ``Ask``, tied to a mask of transformers' usual shape that holds no memory of its own. The attention function
finds it by ``ask_of``. What is no such interval (documents, chunks, images, the user's own functions) is refused.
"""

from __future__ import annotations

import dis
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import masking_utils
from transformers.utils import is_tracing

from jieyue.errors import InputError

__all__ = ["Ask", "ask_of", "asked_mask"]

_TAG = "jieyue_ask"  # on a mask that `asked_mask` made: what it means
_Function = Callable[..., Tensor | bool]
_Interval = tuple[float, float]  # the offsets i - j that are seen, both ends included
_ALL = (-torch.inf, torch.inf)


@dataclass(frozen=True)
class Ask:
    """What one attention call is to compute, besides its pattern.

    ``causal``: no key after the query; ``window``: how far the model's own window reaches to each side, None = no window;
    ``keys``: bool [B, M], True = keep, None = all; ``rows`` and ``columns``: the queries, the newest tokens, and the keys that
    it was made for; ``skipped``: whether transformers' SDPA leaves the mask out where nothing is padded, so that the module's
    ``is_causal`` decides there. ``segments`` [B, N], ``softcap``, ``sinks`` [H] and ``offset_bias`` [H or 1, N + M - 1] as
    ``jieyue.attend`` takes them; ``key_bias``: columns of the keys hold a bias of each (``outside``).
    """

    causal: bool
    window: int | None = None
    keys: Tensor | None = None
    rows: int = 0
    columns: int = 0
    skipped: bool = False
    segments: Tensor | None = None
    softcap: float | None = None
    sinks: Tensor | None = None
    offset_bias: Tensor | None = None
    key_bias: bool = False

    @property
    def more(self) -> tuple[str, ...]:
        """The names of what is asked for beyond causality, window and kept keys."""
        names = ("segments", "softcap", "sinks", "offset_bias")
        return tuple(name for name in names if getattr(self, name) is not None) + ("key_bias",) * self.key_bias

    def sees(self, n: int, m: int, device: torch.device) -> Tensor:
        """Which of m keys each of the last n tokens sees, written out: bool [B or 1, 1, n, m]; what no pattern does."""
        offsets = torch.arange(m - n, m, device=device)[:, None] - torch.arange(m, device=device)
        found = (offsets >= 0 if self.causal else torch.ones_like(offsets, dtype=torch.bool))[None, None]
        if self.window is not None:
            found = found & (offsets.abs() <= self.window)
        if self.keys is not None:
            found = found & self.keys[:, None, None, :]
        if self.segments is not None:
            found = found & (self.segments[:, None, :, None] == self.segments[:, None, None, :])
        return found


def asked_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    kv_offset: int = 0,
    mask_function: _Function = masking_utils.causal_mask_function,
    attention_mask: Tensor | None = None,
    device: torch.device | str = "cpu",
    **others: object,
) -> Tensor:
    """In the place of transformers' mask factory: bool [B, 1, N, M], broadcast over N, with its ``Ask``.

    ``attention_mask`` [B, M], True = keep. ``InputError`` for packed documents, chunked or blockwise masks and any mask
    function of the model's or the user's own; no tensor of N times M numbers is made.
    """
    causal, window = _meaning(mask_function)
    segments = _segments(mask_function)
    kept = None if attention_mask is None else _kept(attention_mask, kv_length, kv_offset)
    shown = torch.ones(batch_size, kv_length, dtype=torch.bool, device=device) if kept is None else kept.clone()
    skipped = bool(others.get("allow_is_causal_skip") or others.get("allow_is_bidirectional_skip"))
    ask = Ask(causal, window, kept, q_length, kv_length, skipped, segments)
    setattr(shown, _TAG, ask)
    mask = shown[:, None, None, :].expand(-1, 1, q_length, -1)
    setattr(mask, _TAG, ask)
    return mask


def ask_of(mask: Tensor) -> Ask | None:
    """What a mask that ``asked_mask`` made means, or one with its last query rows only; None for any other mask."""
    found: Ask | None = getattr(mask, _TAG, None)
    if found is not None or mask.ndim != 4 or torch.compiler.is_compiling() or mask._base is None:
        return found
    found = getattr(mask._base, _TAG, None)
    if found is None or mask.shape[0] != mask._base.shape[0] or mask.shape[3] != mask._base.shape[1]:
        return None
    return replace(found, rows=mask.shape[2])


def _kept(attention_mask: Tensor, kv_length: int, kv_offset: int) -> Tensor | None:
    if attention_mask.ndim != 2:
        raise InputError(f"attention_mask: found shape {list(attention_mask.shape)}, expected [B, M], True = keep")
    kept = attention_mask[:, kv_offset : kv_offset + kv_length].bool()
    if kept.shape[1] < kv_length:  # a mask may be shorter than the keys only where a cache is longer than what was seen
        raise InputError(
            f"attention_mask: found width {attention_mask.shape[1]}, expected {kv_offset + kv_length} keys; "
            "static caches are not supported with a pattern"
        )
    if kept.device.type == "cpu" and not is_tracing(kept) and bool(kept.all()):
        return None  # on other devices the question would cost a synchronisation
    return kept


def _meaning(function: _Function) -> tuple[bool, int | None]:
    """(causal, window) of a mask function; ``InputError`` for one that says anything else."""
    interval = _interval(function)
    if not isinstance(interval, str):
        lo, hi = interval
        window = None if hi == torch.inf else int(hi)
        if lo in (0, -hi):
            return lo == 0, window
    raise InputError(
        f"use(attention=...): the model asks for a mask ({interval}) that the pattern cannot honour; expected causal, "
        "bidirectional or sliding-window masks, padding and packed documents"
    )


def _interval(function: _Function) -> _Interval | str:
    """The offsets that a mask function shows; the name of what is no interval of offsets."""
    if function is masking_utils.causal_mask_function:
        return 0, torch.inf
    if function is masking_utils.bidirectional_mask_function:
        return _ALL
    name = getattr(function, "__qualname__", repr(function)).split(".")[0]
    home = getattr(function, "__module__", "")
    inside = _closure(function)
    if home == masking_utils.__name__ and name in ("and_masks", "or_masks"):
        functions = inside.get("mask_functions")
        assert isinstance(functions, tuple)
        union = name == "or_masks"
        if union and any(_segments(part) is not None for part in functions):
            return "documents that see others"
        return _joined([_interval(part) for part in functions], name, union=union)
    if home == masking_utils.__name__ and name == "packed_sequence_mask_function":
        return _ALL  # `_segments` tells which
    if home == masking_utils.__name__ and name == "remap_positions_for_packed_sequence":
        return _interval(inside["mask_function"])  # positions within a document are as far apart as in the row
    window = inside.get("sliding_window")
    if isinstance(window, int) and set(inside) == {"sliding_window"}:
        known = {
            (masking_utils.__name__, "sliding_window_overlay"): (-torch.inf, window - 1),
            (masking_utils.__name__, "sliding_window_bidirectional_overlay"): (-window, window),
            # bidirectional Gemma 3: keys less than `sliding_window` away
            ("transformers.models.gemma3.modeling_gemma3", "_bidirectional_window_overlay"): (1 - window, window - 1),
        }
        return known.get((home, name), name)
    return _ALL if _is_always_true(function) else name


def _segments(function: _Function) -> Tensor | None:
    """The document of each token, [B, N], where a mask function keeps documents apart."""
    inside = _closure(function)
    found = inside.get("packed_sequence_mask")
    if isinstance(found, Tensor):
        return found
    functions = inside.get("mask_functions")
    parts = [_segments(part) for part in functions] if isinstance(functions, tuple) else []
    return next((part for part in parts if part is not None), None)


def _joined(parts: list[_Interval | str], name: str, *, union: bool) -> _Interval | str:
    intervals: list[_Interval] = []
    for part in parts:
        if isinstance(part, str):
            return part
        intervals.append(part)
    lows, highs = zip(*intervals, strict=True)
    if not union:
        return max(lows), min(highs)
    widest = (min(lows), max(highs))
    return widest if widest in intervals else name  # a union of overlapping halves is left alone


def _is_always_true(function: _Function) -> bool:
    """Whether a function looks at nothing, its arguments included, and says True."""
    code = getattr(function, "__code__", None)
    if code is None or code.co_freevars or code.co_argcount or not code.co_flags & inspect.CO_VARARGS:
        return False
    looks = any(step.opname.startswith("LOAD_FAST") for step in dis.get_instructions(code))
    return not looks and bool(function())


def _closure(function: _Function) -> dict[str, Any]:
    """Name -> value of what a function closes over."""
    code = getattr(function, "__code__", None)
    cells = getattr(function, "__closure__", None) or ()
    return dict(zip(code.co_freevars, (cell.cell_contents for cell in cells), strict=False)) if code else {}
