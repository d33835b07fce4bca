"""The parts of the data, once for all tasks: what is trained on, set aside, held out, and what the parts share.

Examples of one group (a passage, a text) fall on one side. Which groups go apart is told by a salted checksum of the
group, so it depends neither on the order of the files nor on the number of processes, and the two splits of one run are
independent of one another.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

from jieyue.data.draws import drawn
from jieyue.data.findings import Findings

__all__ = [
    "HELD_OUT",
    "MOST_ASIDE",
    "SET_ASIDE",
    "SHIPPED",
    "Sources",
    "halved",
    "name_of",
    "sampled",
    "set_apart",
    "stretches",
]

Example = TypeVar("Example")

SHIPPED = "the corpus that ships"
HELD_OUT = 0.1  # of files that come without a held-out part
SET_ASIDE, MOST_ASIDE = 0.02, 400  # of the training examples: for curves, calibration, the best checkpoint


@dataclass(frozen=True)
class Sources(Generic[Example]):
    """Examples to train on, to set aside (curves, calibration) and to judge by, and what reading them found."""

    name: str
    train: Sequence[Example]
    set_aside: Sequence[Example]
    held_out: Sequence[Example]
    findings: Findings
    held_out_findings: Findings | None = None
    shared: Mapping[str, int] | None = None


def halved(sources: Sources[Example]) -> Sources[Example]:
    """Where the part set aside is the held-out part, every second example of it for each: what chooses must not judge."""
    if sources.set_aside is not sources.held_out:
        return sources
    return replace(sources, set_aside=sources.held_out[::2], held_out=sources.held_out[1::2])


def set_apart(
    examples: Sequence[Example], groups: Sequence[str], share: float, salt: str, most: int | None = None
) -> tuple[list[Example], list[Example]]:
    """(rest, apart): about ``share`` of the examples, at most ``most`` and at least one group; order is kept in both.

    Groups are taken by their checksums until the next one would exceed the share; so nothing depends on their order. Where
    all examples are of one group nothing is set apart.

    >>> set_apart(list("abcdef"), list("abcdef"), 0.3, "salt")
    (['a', 'c', 'd', 'e'], ['b', 'f'])
    """
    sizes: dict[str, int] = {}
    for group in groups:
        sizes[group] = sizes.get(group, 0) + 1
    wanted = max(1, min(round(share * len(examples)), most if most is not None else len(examples)))
    ranked = _ranked(sizes, salt)
    apart: set[str] = set()
    held = 0
    for group in ranked if len(sizes) > 1 else []:
        if held + sizes[group] <= wanted:
            apart.add(group)
            held += sizes[group]
        if held == wanted:
            break
    if not apart and len(sizes) > 1:  # every group is larger than the share: the smallest one
        apart.add(min(ranked, key=lambda group: sizes[group]))
    rest = [one for one, group in zip(examples, groups, strict=True) if group not in apart]
    return rest, [one for one, group in zip(examples, groups, strict=True) if group in apart]


def sampled(examples: Sequence[Example], limit: int | None, salt: str) -> Sequence[Example]:
    """``limit`` of the examples, drawn at random, in their order; all where there are no more. Runs of other seeds draw the same.

    >>> list(sampled("abcdefgh", 3, "train")), sampled("ab", 3, "train")
    (['d', 'e', 'h'], 'ab')
    """
    if limit is None or len(examples) <= limit:
        return examples
    return [examples[at] for at in drawn(len(examples), limit, salt)]


def stretches(examples: Sequence[Example], groups: Sequence[str], limit: int | None, salt: str) -> Sequence[Example]:
    """``limit`` of the examples in whole groups, drawn at random, but for the last one, which is cut; in their order. Of running text,
    where single examples drawn here and there would have no neighbour left.

    >>> list(stretches("abcdefgh", "11223344", 5, "train"))
    ['a', 'b', 'c', 'g', 'h']
    """
    if limit is None or len(examples) <= limit:
        return examples
    members: dict[str, list[int]] = {}
    for place, group in enumerate(groups):
        members.setdefault(group, []).append(place)
    places = [place for group in _ranked(members, salt) for place in members[group]]
    return [examples[place] for place in sorted(places[:limit])]


def _ranked(groups: Iterable[str], salt: str) -> list[str]:
    """In an order that is told by a salted checksum of each."""
    return sorted(groups, key=lambda group: (zlib.crc32(f"{salt}\0{group}".encode("utf-8", "surrogatepass")), group))


def name_of(files: Sequence[str | Path]) -> str:
    """The files' names, or the corpus's."""
    return ", ".join(Path(path).name for path in files) or SHIPPED
