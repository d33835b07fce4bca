"""What reading found, counted: nothing is repaired, skipped or doubted in silence.

``Findings`` travels beside the examples from the reader to the report.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from jieyue.errors import InputError

__all__ = ["MEANING", "BadRecord", "Findings", "shown_text"]

_LISTED = 100  # broken records that are listed; all are counted

MEANING = {
    "files": "files read",
    "questions": "questions read",
    "passages": "different passages",
    "answerable": "questions with an answer",
    "unanswerable": "questions said to have no answer",
    "golds_unknown": "questions whose answer the file does not tell; never trained on or judged",
    "records_skipped": "broken records left out",
    "files_with_bom": "files that begin with a byte order mark",
    "files_with_crlf": "files with Windows line ends",
    "files_not_utf8": "files in another encoding than UTF-8",
    "ids_duplicate": "questions whose id stood before",
    "questions_repeated": "questions that repeat another with its passages and answers",
    "offsets_wrong": "answers that do not stand at the place given for them",
    "offsets_repaired": "of these, moved to the nearest place where the answer stands",
    "answers_not_in_text": "answers that stand nowhere in their passage; judged by, not trained on",
    "passages_copied_answers": "passages that hold an answer given for another passage",
    "questions_truncated": "questions cut to question_tokens",
    "questions_without_golds": "questions without known answer: no row",
    "questions_not_trained": "answerable questions without any row: answer over-long or not in the text",
    "passages_windowed": "passages longer than a window, counted once a question",
    "windows": "windows over all passages",
    "windows_left_out": "windows without the answer beyond negatives_per_positive",
    "windows_unclear": "windows left out because the answer may stand in them in another way",
    "answers_over_long": "answers longer than answer_slots, or without a token",
    "answers_off_token_borders": "answers whose tokens begin or end inside a word piece; the target covers them",
    "answers_cut_by_windows": "answers that no window holds whole",
    "longest_answer_tokens": "tokens of the longest answer",
    "examples": "examples read",
    "labels": "different labels",
    "labels_unknown": "examples whose label the file does not tell; never trained on or judged",
    "labels_unseen": "examples with a label that training never shows; always wrong",
    "texts_repeated": "texts that stood before",
    "texts_contradicted": "of these, with another label than before",
    "entities": "entities of all texts",
    "tags_repaired": "tags that are not as BIO has them, read by seqeval's rules (IOB1, or I after O)",
    "entities_off_words": "entities that begin or end inside a word; the whole word is taken",
    "texts_windowed": "texts longer than a window, read by several",
    "texts_truncated": "texts cut to max_tokens",
    "longest_text_tokens": "tokens of the longest text",
    "lines": "lines of text",
    "characters": "characters",
    "lines_repeated": "lines of 20 characters or more that stood before",
    "lines_cut": "lines longer than a row, cut into several",
    "longest_row_tokens": "tokens of the longest row",
    "rows_found_again": "rows whose tokens an earlier run left in the folder",
    "rows": "training rows",
    "rows_answered": "rows that give the answer",
    "rows_abstaining": "rows that abstain",
    "tokens": "tokens of all rows",
    "dialogues": "dialogues read",
    "turns": "turns of all dialogues",
    "dialogues_of_one_turn": "dialogues of a single turn",
    "turns_same_speaker": "turns whose speaker spoke the turn before, too",
    "turns_of_tools": "turns of tools, and calls of them: context, never learned",
    "turns_not_learned": "turns that are context only: of tools, or of weight 0",
    "dialogues_with_tools": "rows that list tools; the list itself is not read",
    "dialogues_of_weight_0": "rows of weight 0, left out",
    "dialogues_repeated": "dialogues that stood before, word for word",
    "dialogues_of_said_replies": "held out by their opening but left out of judging: training says their reply too",
    "dialogues_nearly_repeated": "dialogues that stood before but for digits, punctuation, spaces and case",
    "files_presegmented": "files whose Chinese has spaces between its words; these were removed",
    "dialogues_shortened": "dialogues whose oldest turns were dropped: longer than max_tokens",
    "turns_dropped": "oldest turns dropped, each whole",
    "turns_cut": "single turns longer than max_tokens, cut at their end",
    "dialogues_without_loss": "dialogues with no token to learn from: no reply in them",
    "pairs": "sources with titles read",
    "sources_repeated": "sources that stood before",
    "titles_repeated": "titles that stood before",
    "titles_in_source": "titles that stand in their source, letter for letter",
    "sources_truncated": "sources cut to source_tokens",
    "titles_over_long": "titles longer than title_tokens",
    "titles_left_out": "titles without a row: over-long, or without a token",
    "longest_title_tokens": "tokens of the longest title, its closing one included",
    "unknown_tokens": "tokens in rows that the vocabulary lacks",
}
"""What every count says, for people; the names are those of ``Findings.counts`` and of the reader's rows."""


class BadRecord(Exception):
    """One record that cannot be read: what was found, what was expected."""

    def __init__(self, found: str, expected: str) -> None:
        super().__init__(f"found {found}, expected {expected}")
        self.found = found


@dataclass(slots=True)
class Findings:
    """Counts by name (``MEANING`` says what each is), encodings by file, a line for the first hundred skipped records.

    ``speakers``: which role each name in the files was given; ``example``: (role, text) of one dialogue's first turns.
    ``a + b`` joins two.
    """

    counts: Counter[str] = field(default_factory=Counter)
    encodings: dict[str, str] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    speakers: dict[str, str] = field(default_factory=dict)
    example: tuple[tuple[str, str], ...] = ()

    def __add__(self, other: Findings) -> Findings:
        return Findings(
            Counter({key: self.counts[key] + other.counts[key] for key in {**self.counts, **other.counts}}),
            {**self.encodings, **other.encodings},
            self.skipped + other.skipped,
            {**self.speakers, **other.speakers},
            self.example or other.example,
        )

    def note_file(self, path: str | Path, encoding: str, has_bom: bool, has_crlf: bool) -> None:
        """Counts a file that was opened, and what is worth knowing about it."""
        self.encodings[str(path)] = encoding
        self.counts["files"] += 1
        self.counts["files_with_bom"] += has_bom
        self.counts["files_with_crlf"] += has_crlf
        self.counts["files_not_utf8"] += encoding != "utf-8"

    def refuse(self, line: str, skip_bad: bool, what: str = "records") -> None:
        """A broken record (``line`` says which, and why): counted and listed where such are skipped, else ``InputError``."""
        if not skip_bad:
            raise InputError(f"{line}; correct it, or pass --skip-bad to leave such {what} out")
        self.counts["records_skipped"] += 1
        if len(self.skipped) < _LISTED:
            self.skipped.append(line)

    def who_is_who(self) -> str:
        """``human = user, gpt = assistant``: the names in the files, by role."""
        order = {role: number for number, role in enumerate(("system", "user", "assistant"))}
        named = sorted(self.speakers.items(), key=lambda one: order.get(one[1], len(order)))
        told = ", ".join(f"{name} = {role}" for name, role in named)
        return told or "no speakers are named: the first is the user, turns alternate"

    def rows(self) -> list[tuple[str, int]]:
        """(what, how many), in the order of first counting: for the doctor's table."""
        return list(self.counts.items())


def shown_text(text: str, most: int = 200) -> str:
    """The beginning of a text for a report: without characters that command a terminal."""
    whole = "".join(char if char.isprintable() or char == "\n" else "\ufffd" for char in text)
    return whole if len(whole) <= most else whole[: most - 1] + "…"
