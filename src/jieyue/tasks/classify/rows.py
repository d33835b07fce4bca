"""Texts as rows of tokens, cut to the longest row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy

from jieyue.data.labelled import Labelled

from .settings import ClassifySettings

if TYPE_CHECKING:
    from jieyue.hf.types import Tokenizer

__all__ = ["rows_of"]

_CHUNK = 2048


def rows_of(
    examples: Sequence[Labelled], tokenizer: Tokenizer, settings: ClassifySettings, counts: Counter[str]
) -> list[dict[str, numpy.ndarray]]:
    """``input_ids`` [L] of each text, or of both texts where there are pairs, with their ``token_type_ids`` where the tokenizer has
    them; ``counts`` learns how many were cut, and the longest text.
    """
    found: list[dict[str, numpy.ndarray]] = []
    paired = any(one.pair for one in examples)
    for at in range(0, len(examples), _CHUNK):
        some = examples[at : at + _CHUNK]
        pairs = [one.pair for one in some] if paired else None
        lengths = [len(ids) for ids in tokenizer([one.text for one in some], pairs, verbose=False)["input_ids"]]
        cut = tokenizer([one.text for one in some], pairs, truncation=True, max_length=settings.max_tokens)
        counts["texts_truncated"] += sum(length > settings.max_tokens for length in lengths)
        counts["longest_text_tokens"] = max(counts["longest_text_tokens"], *lengths)
        for place in range(len(some)):
            row = {"input_ids": numpy.array(cut["input_ids"][place])}
            if paired and "token_type_ids" in cut:
                row["token_type_ids"] = numpy.array(cut["token_type_ids"][place])
            found.append(row)
    return found
