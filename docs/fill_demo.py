"""Writes what ``make demo`` prints, shortened, into README and docs/start.md, in both languages, from docs/results/demo.json.

    python docs/fill_demo.py

The lines are those of the report as the command line shows it, at 100 columns; "…" stands for what is left out.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from jieyue.report import Report, write_whole

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "docs" / "results" / "demo.json"
PAGES = [ROOT / name for name in ("README.md", "README.zh.md", "docs/start.md", "docs/start.zh.md")]
SECTIONS = ("Quality on held-out questions", "Memory")
SHOWN = re.compile(
    r"exact match  |F1  |gain over|questions  |(un)?answerable +this reader|answerable +best n-gram"
    r"|answerable, answer never in training +(this reader  |best n-gram)|what +predicted|tensors at the peak|whole process"
)


def printed(path: Path = RESULT) -> list[str]:
    """The lines of the report's sections that the demo prints."""
    report = Report.load(path)
    chosen = [section for section in report.sections if section.title in SECTIONS]
    return replace(report, sections=chosen).text(width=100).splitlines()


def block() -> str:
    """The lines shown, with those that go on with them, and "…" for the others."""
    out: list[str] = []
    shown = False
    for line in printed():
        continues = line.startswith("    ")
        shown = shown if continues else bool(SHOWN.match(line))
        if shown:
            out.append(line)
        elif not continues and out and out[-1] != "…":
            out.append("…")
    return "\n".join(out).strip("…\n") + "\n"


def filled(text: str) -> str:
    """A page with the block between ``<!-- demo -->`` and ``<!-- end of demo -->`` written anew."""
    new = f"<!-- demo -->\n```text\n{block()}```\n<!-- end of demo -->"
    return re.sub(r"<!-- demo -->\n.*?<!-- end of demo -->", lambda _: new, text, flags=re.S)


def main() -> None:
    for page in PAGES:
        write_whole(page, filled(page.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
