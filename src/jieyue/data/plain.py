"""Plain text, line by line, and rows of it: what masked-LM training reads.

``read_lines`` gives the lines that hold something. ``split_blocks`` holds some of them out, neighbours together, so that
what is judged is not the next line of what was seen.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path

from jieyue.errors import InputError, message
from jieyue.text import normalize

from .files import decode, read_bytes
from .findings import Findings

__all__ = ["note_repeated_lines", "read_lines", "shared_lines", "split_blocks"]

_LONG = 20  # characters from which on a line is no chance repetition


def read_lines(paths: str | Path | Sequence[str | Path], *, skip_bad: bool = False) -> tuple[list[str], Findings]:
    """The lines of the files that are not blank, in order, and what was found.

    A line with a zero byte or U+FFFD (what decoders leave of damaged text) is broken: ``InputError`` names it; with
    ``skip_bad`` it is left out, counted and listed.
    """
    files = [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]
    findings, lines = Findings(), list[str]()
    for name in ("files", "lines", "characters", "records_skipped"):
        findings.counts[name] = 0
    for path in files:
        text, encoding, has_bom = decode(read_bytes(path), str(path))
        findings.encodings[str(path)] = encoding
        findings.counts["files"] += 1
        findings.counts["files_with_bom"] += has_bom
        findings.counts["files_with_crlf"] += "\r\n" in text
        findings.counts["files_not_utf8"] += encoding != "utf-8"
        for number, raw in enumerate(text.split("\n"), 1):
            line = raw.strip()
            if not line:
                continue
            if "\0" in line or "\ufffd" in line:
                found = f"{path}, line {number}: found damaged characters, expected text"
                if not skip_bad:
                    raise InputError(f"{found}; correct it, or pass --skip-bad to leave such lines out")
                findings.counts["records_skipped"] += 1
                findings.skipped.append(found)
                continue
            lines.append(line)
    if not lines:
        raise InputError(message(", ".join(map(str, files)) or "no file", "no text", "at least one line of it"))
    findings.counts["lines"] = len(lines)
    findings.counts["characters"] = sum(map(len, lines))
    note_repeated_lines(lines, findings)
    return lines, findings


def note_repeated_lines(lines: Sequence[str], findings: Findings) -> None:
    """Counts the lines of twenty characters or more that stood before."""
    long = [line for line in lines if len(line) >= _LONG]
    findings.counts["lines_repeated"] = len(long) - len(set(long))


def split_blocks(lines: Sequence[str], share: float, block: int = 50) -> tuple[list[str], list[str]]:
    """(rest, held out): ``block`` neighbouring lines fall on one side; order is kept.

    The share of the blocks with the smallest checksums is held out, at least one. Blocks are smaller where lines are few.
    """
    block = max(1, min(block, int(len(lines) * share / 4)))
    blocks = [lines[at : at + block] for at in range(0, len(lines), block)]
    ranked = sorted(range(len(blocks)), key=lambda at: (zlib.crc32("\n".join(blocks[at]).encode()), at))
    apart = set(ranked[: max(1, round(share * len(blocks)))])
    rest, held = list[str](), list[str]()
    for at, own in enumerate(blocks):
        (held if at in apart else rest).extend(own)
    return rest, held


def shared_lines(training: Sequence[str], held_out: Sequence[str]) -> dict[str, int]:
    """How many held-out lines (of twenty characters or more) stand in training too, after NFKC, case folding, no spaces."""

    def keys(lines: Sequence[str]) -> list[str]:
        return ["".join(normalize(line).casefold().split()) for line in lines if len(line) >= _LONG]

    known = set(keys(training))
    return {"lines": sum(key in known for key in keys(held_out))}
