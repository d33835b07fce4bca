"""Dialogues, read one at a time from the files that are in use, however large.

Layouts, told apart by their shape: a JSON list of utterances a line (LCCC; the same as one JSON list of lists), lists by
split (``{"train": [[…]], "valid": [[…]]}``, CDial-GPT), messages with roles (``{"messages": [{"role", "content"}]}`` a line,
OpenAI's), and rows with ``turns``, ``dialog``, ``dialogue``, ``dialogues`` or ``conversation`` that hold utterances or
(speaker, utterance) pairs; there the first speaker is the user, every other the assistant.

Texts lose the spaces that pre-segmented Chinese has between its characters; they are otherwise kept.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from jieyue.errors import InputError
from jieyue.text import join_pieces, normalize

from .findings import Findings
from .history import ROLES, Message, alternate
from .streams import Unreadable, records

__all__ = ["Dialogue", "DialogueFiles", "contamination", "digest_of", "read_dialogues"]

Dialogue = tuple[Message, ...]
ROWS = ("messages", "turns", "dialog", "dialogue", "conversation", "conversations")


class _Broken(Exception):
    """One record that cannot be read: what was found, what was expected."""

    def __init__(self, found: str, expected: str) -> None:
        super().__init__(f"found {found}, expected {expected}")


def read_dialogues(
    paths: str | Path | Sequence[str | Path], findings: Findings, *, part: str | None = None, skip_bad: bool = False
) -> Iterator[Dialogue]:
    """The dialogues of the files in order, as they are read; ``findings`` is filled on the way.

    ``part``: the split to take of a file that has several. A broken record raises ``InputError`` with file, record, what is
    wrong and what was expected; with ``skip_bad`` it is left out, counted, and the first hundred are listed.
    Cost: memory of one dialogue, whatever the file's size.
    """
    files = [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]
    counts = findings.counts
    for name in ("files", "dialogues", "turns", "records_skipped"):
        counts[name] += 0
    for path in files:
        counts["files"] += 1
        for number, (place, record) in enumerate(records(path, part), 1):
            try:
                dialogue = _dialogue(record)
            except _Broken as broken:
                line = f"{path}, record {number} ({place}): {broken}"
                if not skip_bad:
                    raise InputError(f"{line}; correct it, or pass --skip-bad to leave such records out") from None
                counts["records_skipped"] += 1
                if len(findings.skipped) < 100:
                    findings.skipped.append(line)
                continue
            counts["dialogues"] += 1
            counts["turns"] += len(dialogue)
            counts["dialogues_of_one_turn"] += len(dialogue) == 1
            counts["turns_same_speaker"] += sum(one.role == two.role for one, two in pairwise(dialogue))
            yield dialogue
    if not counts["dialogues"]:
        names = ", ".join(map(str, files)) or "no file"
        raise InputError(
            f"{names}: found no dialogues ({counts['records_skipped']} records skipped), expected at least one"
        )


class DialogueFiles(Sequence[Dialogue]):
    """The dialogues of files, read anew each time they are gone through, so that none stays in memory.

    ``held_out``: the share (by a checksum of the dialogue's first two turns) that goes to ``held``, and is left out here.
    ``limit``: at most so many. Made by one pass that counts; ``findings`` and ``digest`` (``digest_of``) are that pass's.
    """

    def __init__(
        self,
        paths: str | Path | Sequence[str | Path],
        *,
        part: str | None = None,
        skip_bad: bool = False,
        held_out: float = 0.0,
        limit: int | None = None,
    ) -> None:
        self.paths, self.part, self.skip_bad, self.share, self.limit = paths, part, skip_bad, held_out, limit
        self.findings = Findings()
        self.held: list[Dialogue] = []
        self._count, found = 0, hashlib.sha256()
        for dialogue in read_dialogues(paths, self.findings, part=part, skip_bad=skip_bad):
            if self._is_held(dialogue):
                self.held.append(dialogue)
            elif limit is None or self._count < limit:
                self._count += 1
                found.update(_said(dialogue))
        self.digest = found.hexdigest()

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Dialogue]:
        every = read_dialogues(self.paths, Findings(), part=self.part, skip_bad=self.skip_bad)
        return islice((dialogue for dialogue in every if not self._is_held(dialogue)), self._count)

    def __getitem__(self, number):  # type: ignore[no-untyped-def]
        if isinstance(number, slice):
            return list(islice(self, *number.indices(len(self))))
        return next(islice(self, range(len(self))[number], None))

    def _is_held(self, dialogue: Dialogue) -> bool:
        if not self.share:
            return False
        return (
            zlib.crc32("\n".join(_key(one.text) for one in dialogue[:2]).encode("utf-8", "replace"))
            < self.share * 2**32
        )


def digest_of(dialogues: Iterable[Dialogue]) -> str:
    """Identifies dialogues by what is said in them, by whom, in their order; files that were counted know theirs."""
    if isinstance(dialogues, DialogueFiles):
        return dialogues.digest
    found = hashlib.sha256()
    for dialogue in dialogues:
        found.update(_said(dialogue))
    return found.hexdigest()


def _said(dialogue: Dialogue) -> bytes:
    return json.dumps([(one.role, one.text) for one in dialogue]).encode()


def _dialogue(record: Any) -> Dialogue:
    if isinstance(record, Unreadable):
        raise _Broken(record.why, "a JSON list of utterances, or an object with 'messages', on every line")
    if isinstance(record, dict):
        name = next((name for name in ROWS if name in record), None)
        if name is None:
            raise _Broken(
                f"an object with {sorted(map(str, record))[:8]}", f"one of {', '.join(map(repr, ROWS))} in it"
            )
        record = record[name]
    if not isinstance(record, list) or not record:
        raise _Broken(_kind(record), "a list of utterances that is not empty")
    if any(isinstance(one, str) for one in record):
        return alternate(_text(one, number) for number, one in enumerate(record))
    return _with_speakers(record)


def _with_speakers(record: list[Any]) -> Dialogue:
    """Turns that name their speaker: OpenAI's messages or pairs."""
    found: list[tuple[str, str]] = []
    for number, one in enumerate(record):
        if isinstance(one, list) and len(one) == 2 and isinstance(one[0], str):
            found.append((one[0], _text(one[1], number)))
        elif isinstance(one, dict):
            speaker = next((one[name] for name in ("role", "from", "speaker") if name in one), None)
            text = next((one[name] for name in ("content", "value", "text", "message") if name in one), None)
            if speaker is None:  # rows of bare texts speak in turn
                speaker = ROLES[1 + number % 2]
            if not isinstance(speaker, str):
                raise _Broken(f"turn {number + 1} with the role {_kind(speaker)}", "a role as text")
            found.append((speaker, _text(_joined(text), number)))
        else:
            raise _Broken(f"turn {number + 1}: {_kind(one)}", "text, [speaker, text] or {role, content}")
    if all(speaker in ROLES for speaker, _ in found):
        if any(speaker == "system" for speaker, _ in found[1:]) and not any(s == "user" for s, _ in found):
            return _by_first(found)  # two speakers, of whom one is called the system
        return tuple(Message(speaker, text) for speaker, text in found)
    return _by_first(found)


def _by_first(found: list[tuple[str, str]]) -> Dialogue:
    first = next((speaker for speaker, _ in found if speaker.lower() != "system"), "")
    if found[0][0].lower() == "system" and len(found) > 1 and first:
        return (Message("system", found[0][1]), *_by_first(found[1:]))
    return tuple(Message("user" if speaker == found[0][0] else "assistant", text) for speaker, text in found)


def _joined(content: Any) -> Any:
    """OpenAI's content: text, or a list of parts of which only texts are allowed."""
    if isinstance(content, list) and all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in content):
        return "\n".join(part["text"] for part in content)
    return content


def _text(value: Any, number: int) -> str:
    if not isinstance(value, str) or not value.strip():
        found = "empty text" if isinstance(value, str) else _kind(value)
        raise _Broken(f"{found} in turn {number + 1}", "text")
    return join_pieces(value)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number") + (" that is empty" if value == [] else "")


def contamination(training: Iterable[Dialogue], held_out: Sequence[Dialogue]) -> dict[str, int]:
    """How many held-out dialogues stand in training too, compared after NFKC, case folding and removing spaces.

    ``dialogues``: whole; ``openings``: with the same first two turns; ``replies``: whose last two turns stand next to each
    other in a training dialogue. Cost: one pass; memory of the held-out part alone.
    """
    wholes: dict[bytes, list[int]] = {}
    openings: dict[bytes, list[int]] = {}
    replies: dict[bytes, list[int]] = {}
    for number, dialogue in enumerate(held_out):
        keys = [_key(one.text) for one in dialogue]
        wholes.setdefault(_digest(keys), []).append(number)
        openings.setdefault(_digest(keys[:2]), []).append(number)
        replies.setdefault(_digest(keys[-2:]), []).append(number)
    found: dict[str, set[int]] = {"dialogues": set(), "openings": set(), "replies": set()}
    for dialogue in training:
        keys = [_key(one.text) for one in dialogue]
        found["dialogues"].update(wholes.get(_digest(keys), ()))
        found["openings"].update(openings.get(_digest(keys[:2]), ()))
        for at in range(len(keys) - 1):
            found["replies"].update(replies.get(_digest(keys[at : at + 2]), ()))
    return {name: len(numbers) for name, numbers in found.items()}


def _key(text: str) -> str:
    return "".join(normalize(text).casefold().split())


def _digest(keys: Sequence[str]) -> bytes:
    return hashlib.blake2b("\x1f".join(keys).encode("utf-8", "surrogatepass"), digest_size=16).digest()
