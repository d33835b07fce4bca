"""A text's words as windows of tokens: words stay whole, windows overlap by half, each word belongs to the window that shows most of
its surroundings.

The first token of a word carries its tag. A word of more tokens than a window holds keeps its first ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jieyue.data.tagged import Tagged

if TYPE_CHECKING:
    from jieyue.hf.types import Tokenizer

__all__ = ["Window", "windows_of"]


@dataclass(frozen=True, slots=True)
class Window:
    """``ids``: its tokens; ``first``: (word, place of its first token) of the words that belong to it."""

    ids: tuple[int, ...]
    first: tuple[tuple[int, int], ...]


def windows_of(one: Tagged, tokenizer: Tokenizer, max_tokens: int) -> list[Window]:
    """The windows of a text; every word belongs to exactly one."""
    if not one.places:
        return []
    begin, end = _around(tokenizer)
    room = max_tokens - len(begin) - len(end)
    encoded = tokenizer(one.words, add_special_tokens=False, verbose=False)["input_ids"]
    unknown = [tokenizer.unk_token_id if tokenizer.unk_token_id is not None else tokenizer.pad_token_id]
    words = [(list(ids) or unknown)[:room] for ids in encoded]
    ranges = _ranges([len(ids) for ids in words], room)
    owners = [
        max(range(len(ranges)), key=lambda at: min(word - ranges[at][0], ranges[at][1] - 1 - word))
        for word in range(len(words))
    ]
    found = []
    for number, (start, stop) in enumerate(ranges):
        ids, first = list(begin), []
        for word in range(start, stop):
            if owners[word] == number:
                first.append((word, len(ids)))
            ids += words[word]
        found.append(Window((*ids, *end), tuple(first)))
    return found


def _around(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    begin, end = tokenizer.cls_token_id, tokenizer.sep_token_id
    return [] if begin is None else [begin], [] if end is None else [end]


def _ranges(lengths: Sequence[int], room: int) -> list[tuple[int, int]]:
    """[start, stop) of words of each window: as many as fit, then on from the middle of those."""
    found: list[tuple[int, int]] = []
    start = 0
    while True:
        stop, used = start, 0
        while stop < len(lengths) and used + lengths[stop] <= room:
            used += lengths[stop]
            stop += 1
        found.append((start, stop))
        if stop == len(lengths):
            return found
        start = max(start + 1, (start + stop + 1) // 2)
