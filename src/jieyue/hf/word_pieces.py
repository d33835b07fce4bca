"""Word pieces learned from word counts: byte-pair merges written in WordPiece's way (``##`` continues a word).

Begin with characters; again and again join the pair of neighbouring pieces that occurs most often, ties to the pair that
comes first in the alphabet. The same counts give the same pieces on every machine and in every process, which the
``tokenizers`` library's trainers do not promise (their ties follow the order of a hash table).

Source: Sennrich, Haddow and Birch 2016, "Neural Machine Translation of Rare Words with Subword Units".
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Mapping
from itertools import pairwise

__all__ = ["learn_pieces"]

Pair = tuple[str, str]


def learn_pieces(word_counts: Mapping[str, int], num_pieces: int, min_count: int = 2) -> list[str]:
    """At most ``num_pieces`` pieces of two characters and more, in the order in which they were joined.

    Stops early when no pair occurs ``min_count`` times. Cost: every join visits the words that hold its pair.

    >>> learn_pieces({"ashton": 5, "ashford": 3, "ton": 1}, 4)
    ['##sh', 'ash', '##on', '##ton']
    """
    words = sorted(word_counts)
    split = [[word[0], *(f"##{char}" for char in word[1:])] for word in words]
    counts: dict[Pair, int] = defaultdict(int)
    places: dict[Pair, set[int]] = defaultdict(set)
    for index, pieces in enumerate(split):
        for pair in pairwise(pieces):
            counts[pair] += word_counts[words[index]]
            places[pair].add(index)
    heap = [(-count, pair) for pair, count in counts.items()]
    heapq.heapify(heap)
    learned: dict[str, None] = {}
    while heap and len(learned) < num_pieces:
        negative, pair = heapq.heappop(heap)
        if -negative != counts[pair]:
            continue  # an outdated entry; the pair's present count has its own
        if counts[pair] < min_count:
            break
        joined = pair[0] + pair[1].removeprefix("##")
        learned[joined] = None
        changed: set[Pair] = set()
        for index in sorted(places[pair]):
            changed |= _join(split[index], pair, joined, word_counts[words[index]], counts, places, index)
        for other in changed - {pair}:
            heapq.heappush(heap, (-counts[other], other))
        del counts[pair], places[pair]
    return list(learned)


def _join(
    pieces: list[str],
    pair: Pair,
    joined: str,
    count: int,
    counts: dict[Pair, int],
    places: dict[Pair, set[int]],
    index: int,
) -> set[Pair]:
    """Joins the pair in one word and moves the counts of its neighbours; returns the pairs whose counts changed."""
    before = list(pairwise(pieces))
    at = 0
    while at < len(pieces) - 1:
        if (pieces[at], pieces[at + 1]) == pair:
            pieces[at : at + 2] = [joined]
        at += 1
    after = list(pairwise(pieces))
    for old in before:
        counts[old] -= count
    for new in after:
        counts[new] += count
        places[new].add(index)
    for old in set(before) - set(after):
        places[old].discard(index)
    return set(before) | set(after)
