"""A recipe's settings from the flags that were given; None (the recipe decides) where none was."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

__all__ = ["read_settings"]


def read_settings(
    model: str,
    own_data: bool,
    answer_slots: int | None,
    window_tokens: int | None,
    seed: int,
    search: str | None = None,
    reader: str | None = None,
) -> Any:
    """``ReadSettings`` with these lengths, this search and this kind of reader."""
    from jieyue import run

    if answer_slots is None and window_tokens is None and search is None and reader is None:
        return None
    settings = run.task("read").settings(run.Materials(model=model, data=("own",) if own_data else ()), seed)
    overlap = settings.overlap_tokens if window_tokens is None else min(settings.overlap_tokens, window_tokens // 4)
    return replace(
        settings,
        answer_slots=answer_slots or settings.answer_slots,
        window_tokens=window_tokens or settings.window_tokens,
        overlap_tokens=overlap,
        search=search,
        reader=reader or settings.reader,
    )
