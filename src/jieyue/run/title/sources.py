"""Where sources and titles come from: files, or the corpus that ships (its notices, profiles and news have titles)."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jieyue.data.corpora import compose, heldout_path
from jieyue.data.findings import Findings
from jieyue.data.titles import Pair, shared_pairs
from jieyue.errors import InputError
from jieyue.recipes.title import TitleSettings, read
from jieyue.run.values import Materials, Sources

__all__ = ["SHIPPED", "open_sources", "read_held_out", "read_training", "texts_of"]

SHIPPED = "the corpus that ships"
SHIPPED_PAIRS = 6000


def open_sources(materials: Materials, settings: TitleSettings, seed: int = 0) -> Sources:
    """Everything a run needs. Without a held-out file a tenth of the sources is held out; 4 %, at most 200 pairs, are set aside."""
    if materials.limit is not None and materials.limit < 20:
        raise InputError(f"limit={materials.limit}: expected at least 20 pairs")
    name = ", ".join(Path(path).name for path in materials.data) or SHIPPED
    train, findings = read_training(materials, settings, seed)
    judged_findings: Findings | None = None
    if materials.held_out or not materials.data:
        judged, judged_findings = read_held_out(materials.held_out, settings, materials.skip_bad)
    else:
        train, judged = _split(train, 0.1)
    if materials.limit is not None:
        train, judged = train[: materials.limit], judged[: materials.limit]
    fit, aside = _split(train, min(0.04, 200 / max(1, len(train))), "aside")
    if not fit or not judged:
        raise InputError(f"{name}: {len(train)} pairs are too few to hold some out; name a held-out file (--held-out)")
    return Sources(name, fit, aside or fit[-20:], judged, findings, judged_findings, shared_pairs(fit, judged))


def read_training(materials: Materials, settings: TitleSettings, seed: int = 0) -> tuple[list[Pair], Findings]:
    """The pairs of the files; without files, composed ones: 6,000 or as many as asked for."""
    if materials.data:
        return read(materials.data, skip_bad=materials.skip_bad, settings=settings)
    count = materials.limit or SHIPPED_PAIRS
    pairs = _pairs(compose("train", seed, 4 * count))[:count]
    findings = Findings()
    findings.counts["pairs"] = len(pairs)
    return pairs, findings


def read_held_out(
    files: Sequence[str | Path], settings: TitleSettings, skip_bad: bool = False
) -> tuple[list[Pair], Findings]:
    """The pairs to judge by; without files, those of the held-out part that ships."""
    if files:
        return read(files, skip_bad=skip_bad, settings=settings)
    pairs, findings = _pairs(json.loads(heldout_path().read_text(encoding="utf-8"))), Findings()
    findings.counts["pairs"] = len(pairs)
    return pairs, findings


def texts_of(pairs: Iterable[Pair]) -> list[str]:
    """Every source and title, in order: what a vocabulary is learned from."""
    return list(dict.fromkeys(text for pair in pairs for text in (pair.source, pair.title)))


def _pairs(corpus: Any) -> list[Pair]:
    return [Pair(one["paragraphs"][0]["context"], one["title"]) for one in corpus["data"]]


def _split(pairs: Sequence[Pair], share: float, salt: str = "") -> tuple[list[Pair], list[Pair]]:
    """(rest, held out): a pair's side is told by a checksum of its source, so that one source is on one side; order is kept."""
    rest: list[Pair] = []
    held: list[Pair] = []
    for pair in pairs:
        checksum = zlib.crc32((salt + pair.source).encode()) / 2**32
        (held if checksum < share else rest).append(pair)
    return rest, held
