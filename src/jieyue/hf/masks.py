"""What transformers' mask factory hands our attention: the padding, two-dimensional, and a refusal of all it cannot say.

transformers builds masks from a ``mask_function`` (causal, bidirectional, sliding, packed documents, overlays of images …).
Our kernels take causality and windows from the module and the pattern, and padding as [B, M]; so only mask functions that
say no more than that are let through. Anything else would be ignored in silence, and is refused instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers import masking_utils
from transformers.utils import is_tracing

from jieyue.errors import InputError

__all__ = ["padding_only"]


def padding_only(
    batch_size: int,
    q_length: int | None = None,
    kv_length: int = 0,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] | None = None,
    attention_mask: Tensor | None = None,
    **_: Any,
) -> Tensor | None:
    """The keys to keep, bool [B, kv_length], or None when all are; no tensor of queries times keys is ever made.

    Registered with ``AttentionMaskInterface``. ``InputError`` for packed documents, chunked or blockwise masks and any
    mask function of the model's or the user's own.
    """
    if mask_function is not None:
        odd = _unknown_part(mask_function)
        if odd is not None:
            raise InputError(
                f"use(attention=...): the model asks for a mask ({odd}) that the pattern cannot honour; expected causal, "
                "bidirectional or sliding-window masks with padding. Packed documents need an attention_mask or separate rows"
            )
    if attention_mask is None:
        return None
    if attention_mask.ndim != 2:
        raise InputError(f"attention_mask: found shape {list(attention_mask.shape)}, expected [B, M], True = keep")
    kept = attention_mask[:, kv_offset : kv_offset + kv_length]
    missing = kv_length - kept.shape[1]
    if missing > 0:  # a mask may be shorter than the keys only where a cache is longer than what was seen
        raise InputError(
            f"attention_mask: found width {attention_mask.shape[1]}, expected {kv_offset + kv_length} keys; "
            "static caches are not supported with a pattern"
        )
    if kept.device.type == "cpu" and not is_tracing(kept) and bool(kept.all()):
        return None  # on other devices the question would cost a synchronisation
    return kept


def _unknown_part(mask_function: Callable[..., Any]) -> str | None:
    """The name of a part that is neither causal, bidirectional nor a sliding window; None when all parts are known."""
    if mask_function in (masking_utils.causal_mask_function, masking_utils.bidirectional_mask_function):
        return None
    name = getattr(mask_function, "__qualname__", repr(mask_function))
    home = getattr(mask_function, "__module__", "")
    if home == masking_utils.__name__ and name.startswith("and_masks."):
        parts = [part for cell in mask_function.__closure__ or () for part in _functions(cell.cell_contents)]
        return next((odd for odd in map(_unknown_part, parts) if odd is not None), None)
    windows = ("sliding_window_overlay.", "sliding_window_bidirectional_overlay.")
    if home == masking_utils.__name__ and name.startswith(windows):
        return None
    return name.split(".")[0]


def _functions(content: Any) -> list[Callable[..., Any]]:
    return [part for part in content if callable(part)] if isinstance(content, tuple | list) else []
