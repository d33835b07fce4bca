"""The token that fills a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jieyue.errors import InputError

if TYPE_CHECKING:
    from jieyue.hf.types import Tokenizer

__all__ = ["pad_of"]


def pad_of(tokenizer: Tokenizer) -> int:
    """The padding token; ``InputError`` where there is none."""
    found = tokenizer.pad_token_id
    if found is None:
        raise InputError(
            f"tokenizer: found no padding token in a {type(tokenizer).__name__}, expected one; set tokenizer.pad_token (such as "
            "its eos_token) and save it with the model"
        )
    return int(found)
