"""Dialogues, read one at a time from the files that are in use, however large.

JSON in every shape that ``data.turns`` tells apart, one document or many, Parquet, and the texts of ``data.dialogue_texts``.
Texts are kept as they are written; only where a file's Chinese has spaces between its words, as tokenizers leave them, these go.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, compress, islice
from operator import eq
from pathlib import Path
from typing import overload

from jieyue.errors import InputError
from jieyue.text import is_presegmented, join_pieces

from .dialogue_texts import text_records
from .draws import drawn
from .files import as_paths
from .findings import BadRecord, Findings
from .json_shapes import is_json
from .repeats import Repeats, keys_of, repeated, shared
from .rows import is_parquet, parquet_records
from .speakers import Speakers
from .streams import Placed, records
from .textstream import Progress, TextStream
from .turns import LAYOUT, Dialogue, Records

__all__ = ["Dialogue", "DialogueFiles", "Format", "contamination", "digest_of", "read_dialogues"]

_SAMPLE = 300  # dialogues by which a file's spacing is told
_EXAMPLE = 4  # turns of the first dialogue that are shown


@dataclass(frozen=True, kw_only=True)
class Format:
    """What is known of files beforehand: ``roles`` (speaker's name -> role), ``delimiter``, ``encoding``; else it is found."""

    roles: Mapping[str, str] = field(default_factory=dict)
    delimiter: str | None = None
    encoding: str | None = None


def read_dialogues(
    paths: str | Path | Sequence[str | Path],
    findings: Findings,
    *,
    part: str | None = None,
    skip_bad: bool = False,
    known: Format | None = None,
    progress: Progress | None = None,
) -> Iterator[Dialogue]:
    """The dialogues of the files in order, as they are read; ``findings`` is filled on the way.

    ``part``: the split to take of a file that has several. A broken record raises ``InputError`` with file, record, what is
    wrong and what was expected; with ``skip_bad`` it is left out, counted, and the first hundred are listed.
    Cost: memory of a few hundred dialogues, whatever the file's size.
    """
    files = as_paths(paths)
    counts, known = findings.counts, known or Format()
    for name in ("files", "dialogues", "turns", "records_skipped"):
        counts[name] += 0
    made = Records(Speakers(known.roles), findings)
    for path in files:
        raw = _raw_dialogues(path, _records_of(path, findings, part, known, progress, skip_bad), made, skip_bad)
        for dialogue in _as_written(raw, findings):
            counts["dialogues"] += 1
            counts["turns"] += len(dialogue)
            counts["dialogues_of_one_turn"] += len(dialogue) == 1
            roles = [one.role for one in dialogue]
            counts["turns_same_speaker"] += sum(map(eq, roles, roles[1:]))
            counts["turns_not_learned"] += len(dialogue) - sum([one.learned for one in dialogue])
            if not findings.example:
                findings.example = tuple((one.role, one.text) for one in dialogue[:_EXAMPLE])
            yield dialogue
    if not counts["dialogues"]:
        names = ", ".join(map(str, files)) or "no file"
        raise InputError(
            f"{names}: found no dialogues ({counts['records_skipped']} records skipped), expected at least one"
        )


def _records_of(
    path: Path, findings: Findings, part: str | None, known: Format, progress: Progress | None, goes_on: bool
) -> Iterator[Placed]:
    if is_parquet(path):
        findings.note_file(path, "utf-8", False, False)
        yield from parquet_records(path)
        return
    with TextStream(path, known.encoding, progress) as text:
        findings.note_file(path, text.encoding, text.has_bom, text.has_crlf)
        if known.delimiter is None and is_json(text.peek(2**16), text.ended):
            yield from records(text, LAYOUT, part, goes_on=goes_on)
        else:
            yield from text_records(text, known.delimiter)


def _raw_dialogues(path: Path, found: Iterable[Placed], made: Records, skip_bad: bool) -> Iterator[Dialogue]:
    for number, (place, record) in enumerate(found, 1):
        try:
            dialogue = made.dialogue(record)
        except BadRecord as bad:
            made.findings.refuse(f"{path}, record {number} ({place}): {bad}", skip_bad)
            continue
        if dialogue is not None:
            yield dialogue


def _as_written(dialogues: Iterator[Dialogue], findings: Findings) -> Iterator[Dialogue]:
    """The dialogues with their texts as they are written, or without the spaces that a tokenizer put between Chinese words."""
    first = list(islice(dialogues, _SAMPLE))
    whole = chain(first, dialogues)
    if not is_presegmented(one.text for dialogue in first for one in dialogue):
        yield from whole
        return
    findings.counts["files_presegmented"] += 1
    for dialogue in whole:
        yield tuple(one._replace(text=join_pieces(one.text)) if " " in one.text else one for one in dialogue)


class DialogueFiles(Sequence[Dialogue]):
    """The dialogues of files, read anew each time they are gone through, so that none stays in memory.

    ``held_out``: the share (by a checksum of the dialogue's first two turns) that goes to ``held``, and is left out here.
    ``limit``: at most so many, drawn from all (``data.draws``); that takes one more pass. Made by one pass that counts; ``findings``,
    ``digest`` (``digest_of``) and ``repeats`` (what stands in them, for ``contamination``) are that pass's. Memory: some fifty bytes a
    dialogue, and the held-out ones.
    """

    def __init__(
        self,
        paths: str | Path | Sequence[str | Path],
        *,
        part: str | None = None,
        skip_bad: bool = False,
        held_out: float = 0.0,
        limit: int | None = None,
        known: Format | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.paths, self.part, self.skip_bad, self.known, self.progress = paths, part, skip_bad, known, progress
        self.findings, self.repeats, held = Findings(), Repeats(), Repeats()
        self.held: list[Dialogue] = []
        self._kept, found = bytearray(), hashlib.sha256()
        num_kept, num_seen, chosen = 0, 0, None if limit is None else self._drawn(limit, held_out)
        for dialogue in self._all(self.findings):
            keys = keys_of(dialogue)
            is_held = _is_apart(keys, held_out)
            is_kept = not is_held and (chosen is None or num_seen in chosen)
            num_seen += not is_held
            self._kept.append(is_kept)
            if is_held:
                self.held.append(dialogue)
                held.add(keys)
            elif is_kept:
                num_kept += 1
                found.update(_said(dialogue))
                self.repeats.add(keys)
        self._count, self.digest = num_kept, found.hexdigest()
        self.findings.counts.update(repeated(self.repeats, held))

    def _drawn(self, limit: int, held_out: float) -> set[int] | None:
        """Which of the dialogues that are not held out stay, by their numbers; None for all."""
        count = sum(not (held_out and _is_apart(keys_of(one), held_out)) for one in self._all(Findings()))
        return set(drawn(count, limit, "train")) if count > limit else None

    def _all(self, findings: Findings) -> Iterator[Dialogue]:
        return read_dialogues(
            self.paths,
            findings,
            part=self.part,
            skip_bad=self.skip_bad,
            known=self.known,
            progress=self.progress,
        )

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Dialogue]:
        return islice(compress(self._all(Findings()), self._kept), self._count)

    @overload
    def __getitem__(self, number: int) -> Dialogue: ...

    @overload
    def __getitem__(self, number: slice) -> list[Dialogue]: ...

    def __getitem__(self, number: int | slice) -> Dialogue | list[Dialogue]:
        if isinstance(number, slice):
            return list(islice(self, *number.indices(len(self))))
        return next(islice(self, range(len(self))[number], None))


def _is_apart(keys: Sequence[str], share: float) -> bool:
    """Whether the first two turns' checksum is below this share of all checksums."""
    return share > 0 and zlib.crc32("\n".join(keys[:2]).encode()) < share * 2**32


def digest_of(dialogues: Iterable[Dialogue]) -> str:
    """Identifies dialogues by what is said in them, by whom, in their order; files that were counted know theirs."""
    if isinstance(dialogues, DialogueFiles):
        return dialogues.digest
    found = hashlib.sha256()
    for dialogue in dialogues:
        found.update(_said(dialogue))
    return found.hexdigest()


def contamination(training: Iterable[Dialogue], held_out: Sequence[Dialogue]) -> dict[str, int]:
    """How many held-out dialogues stand in training too, compared after NFKC, case folding and removing spaces.

    ``dialogues``: whole; ``openings``: with the same first two turns; ``replies``: whose last reply is said anywhere in
    training; where there are such, ``dialogues nearly``: beyond those the same but for digits and punctuation.
    Cost: nothing for files that were counted, else one pass; some fifty bytes a dialogue.
    """
    if isinstance(training, DialogueFiles):
        return shared(training.repeats, held_out)
    known = Repeats()
    for dialogue in training:
        known.add(keys_of(dialogue))
    return shared(known, held_out)


def _said(dialogue: Dialogue) -> bytes:
    """The turns with their lengths, so that no two dialogues are written alike."""
    said = [f"{one.role}{'' if one.learned else '-'}{len(one.text)}:{one.text}" for one in dialogue]
    return f"{len(said)} {''.join(said)}".encode("utf-8", "surrogatepass")
