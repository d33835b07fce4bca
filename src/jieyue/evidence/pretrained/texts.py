"""English texts for pretrained models: of the corpus that ships, or of WikiText's articles in the folder of larger data."""

from __future__ import annotations

import lzma
import re
from collections import defaultdict
from collections.abc import Mapping
from random import Random

from jieyue.data.corpora import compose
from jieyue.evidence.claims import Place
from jieyue.json_values import Facts

__all__ = ["WIKITEXT", "passages", "texts"]

WIKITEXT = "text/wikitext-2/wiki.test.tokens.xz"
_TITLE = re.compile(r"^ = ([^=].*) = $", re.M)


def passages(asked: Facts, seed: int, place: Place) -> list[tuple[str, str]]:
    """(article, passage): ``asked["articles"]`` of them drawn by the seed, two passages of ``asked["words"]`` words each.

    Of the corpus that ships an "article" is a topic: the passages of one topic one after the other.
    """
    count, words = asked["articles"], asked["words"]
    named = {name: text.split() for name, text in _articles(asked, place).items()}
    long = sorted(name for name, own in named.items() if len(own) >= 2 * words)
    chosen = Random(seed).sample(long, min(count, len(long)))
    starts = {name: Random(f"{seed} {name}").randint(0, len(named[name]) - 2 * words) for name in chosen}
    return [
        (name, " ".join(named[name][start : start + words]))
        for name in chosen
        for start in (starts[name], starts[name] + words)
    ]


def texts(asked: Facts, seed: int, place: Place) -> list[str]:
    """``asked["rows"]`` texts of ``asked["words"]`` words, each of another article, drawn by the seed."""
    pairs = passages({**asked, "articles": asked["rows"]}, seed, place)
    return [text for _, text in pairs[::2]]


def _articles(asked: Facts, place: Place) -> Mapping[str, str]:
    if "data" not in asked:
        found: dict[str, list[str]] = defaultdict(list)
        for entry in compose("train", 0, 6000, languages=("en",))["data"]:
            found[entry["topic"]].append(entry["paragraphs"][0]["context"])
        return {topic: " ".join(own) for topic, own in found.items()}
    assert place.data is not None  # ``running`` refuses before
    with lzma.open(place.data / asked["data"], "rt", encoding="utf-8") as lines:
        _, *parts = _TITLE.split(lines.read())
    return {title: _plain(body) for title, body in zip(parts[::2], parts[1::2], strict=True)}


def _plain(body: str) -> str:
    """Without headings, and with hyphens and commas as they were before WikiText parted them."""
    text = re.sub(r"^ =.*= $", "", body, flags=re.M)
    return re.sub(r" @(.)@ ", r"\1", text)
