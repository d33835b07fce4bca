"""The report itself: titled sections of items, saved as report.json and report.html, loaded from report.json."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from jieyue.errors import InputError

from .amounts import plain_text
from .files import write_whole
from .picture import Picture
from .plaintext import Block, blocks, markdown, text
from .translation import catalogue, translated, words_of
from .values import JSON, Fact, Section, decode, encode

__all__ = ["FORMAT", "Report", "Saved"]

FORMAT = "jieyue report 1"


class Saved(NamedTuple):
    """Where a report was written."""

    html: Path
    json: Path


@dataclass
class Report:
    """A titled list of sections. ``about`` is a line under the title; ``language`` is that of the report's own words.

    ``section(title)`` gives the section of that title, a new one at the end if there is none yet. ``text()``,
    ``markdown()``, ``json()``, ``html()`` render; ``blocks()`` gives the same content as strings in rows for a terminal
    that draws its own tables.
    """

    title: str
    about: str = ""
    language: str = "en"
    sections: list[Section] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.title, self.about = plain_text(self.title), plain_text(self.about)

    def section(self, title: str) -> Section:
        """The section of that title; a new one at the end if there is none yet."""
        title = plain_text(title)
        for section in self.sections:
            if section.title == title:
                return section
        self.sections.append(Section(title))
        return self.sections[-1]

    def facts(self) -> Iterator[tuple[str, Fact]]:
        """Every fact with its section's title, in order."""
        return ((section.title, item) for section in self.sections for item in section.items if isinstance(item, Fact))

    def pictures(self) -> list[Picture]:
        """Every picture, in order."""
        return [item for section in self.sections for item in section.items if isinstance(item, Picture)]

    def blocks(self) -> list[Block]:
        """The content as titled rows of strings, numbers formatted: what text, Markdown and terminals print."""
        return blocks(self.sections, words_of(self.language).said)

    def text(self, width: int = 100, page: str | None = None) -> str:
        """Plain text, in lines of at most ``width`` letters; ``page``: where pictures are to be seen, in place of sentences."""
        return text(self.title, self.about, self.blocks(), width, page)

    def in_language(self, language: str) -> Report:
        """The same with its own words in a language of ``translation.LANGUAGES``; data and numbers are as they were."""
        words = catalogue(language)
        sections = [translated(section, language) for section in self.sections]
        return Report(words.said(self.title), words.said(self.about), language, sections)

    def markdown(self, level: int = 1) -> str:
        """Headings start at ``level``; text from data is escaped, pictures are told in a sentence."""
        return markdown(self.title, self.about, self.blocks(), level)

    def html(self) -> str:
        """One self-contained page, whole without script: no outside request, data only ever inserted as text."""
        from .page import page

        return page(self.title, self.about, self.language, self.sections)

    def json(self) -> str:
        """Everything, as ``parse`` reads it."""
        content = {
            "format": FORMAT,
            "title": self.title,
            "about": self.about,
            "language": self.language,
            "sections": [encode(section) for section in self.sections],
        }
        return json.dumps(content, ensure_ascii=False, allow_nan=False, indent=1) + "\n"

    @classmethod
    def parse(cls, text: str) -> Report:
        """The report that ``json()`` gave; ``InputError`` for anything else."""
        try:
            found: JSON = json.loads(text)
        except json.JSONDecodeError as error:
            raise InputError(f"report: found text that is not JSON ({error}), expected a report.json") from None
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            shown = found.get("format") if isinstance(found, dict) else type(found).__name__
            raise InputError(f"report: found format {shown!r}, expected {FORMAT!r}; was it written by another version?")
        sections = decode(found.get("sections", []))
        if not isinstance(sections, tuple) or not all(isinstance(section, Section) for section in sections):
            raise InputError("report: found something else among the sections, expected entries of kind 'section'")
        return cls(
            str(found.get("title", "")), str(found.get("about", "")), str(found.get("language", "en")), list(sections)
        )

    @classmethod
    def load(cls, path: str | Path) -> Report:
        """From the report.json at ``path``, or from the folder that holds one; ``InputError`` where there is none."""
        path = Path(path)
        path = path / "report.json" if path.is_dir() else path
        if not path.is_file():
            raise InputError(f"Report.load: found no file {path}, expected a report.json or its folder")
        return cls.parse(path.read_text(encoding="utf-8"))

    def save(self, folder: str | Path, name: str = "report") -> Saved:
        """Writes ``name``.json and ``name``.html in the folder, each whole or not at all."""
        folder = Path(folder)
        saved = Saved(folder / f"{name}.html", folder / f"{name}.json")
        write_whole(saved.json, self.json())
        write_whole(saved.html, self.html())
        return saved
