"""Writes docs/benchmarks.md and its pictures from the reports in benchmarks/results: numbers are never typed by hand.

    jieyue bench attention --out benchmarks/results && python benchmarks/write_docs.py

What makes each report is said in commands.json, result by result.
"""

import json
from dataclasses import replace
from pathlib import Path

from jieyue.report import Report, save_picture, write_whole

ROOT = Path(__file__).parents[1]
RESULTS, DOCS = ROOT / "benchmarks" / "results", ROOT / "docs"
COMMANDS = json.loads((ROOT / "benchmarks" / "commands.json").read_text(encoding="utf-8"))
PAGES = [
    ("memory.md", "memory", "Waterfall"),
    ("memory.md", "memory-prediction", "Cells"),
    ("memory.md", "digits", None),
    ("attention.md", "attention", "Growth"),
]  # results, or a section, in other pages too
OPENING = """# Benchmarks

Written by `python benchmarks/write_docs.py` from the reports in `benchmarks/results`. Ratios are of one run, alternating repeats,
medians. "not measured": no such machine was at hand. Where a goal is missed the table says so. `make bench` runs them all.
"""


def text_of(path: Path, level: int = 2, title: str | None = None) -> str:
    """A result, or its section ``title``, as Markdown; its pictures are drawn into docs/benchmarks."""
    report = Report.load(path)
    chosen = report if title is None else replace(report, sections=[s for s in report.sections if s.title == title])
    source = f"From [{path.name}](../benchmarks/results/{path.name}), made by `{COMMANDS[path.stem]}`."
    text = chosen.markdown(level=level) + f"\n{source}\n"
    for number, picture in enumerate(report.pictures()):
        if picture in chosen.pictures():
            file = DOCS / "benchmarks" / f"{path.stem}-{number}.svg"
            save_picture(picture, file)
            text += f"\n![{picture.title}](benchmarks/{file.name})\n"
    return text


def catalogue(found: list[Path]) -> str:
    """Every benchmark: its command, and its report where there is one."""
    titles = {"trainers": "[Whose update is the undivided batch's?](trainers.md)"}
    titles |= {path.stem: Report.load(path).title for path in found}
    rows = [f"| {titles.get(name, 'no report yet')} | `{command}` |" for name, command in sorted(COMMANDS.items())]
    return "\n".join(["| report | command |", "| --- | --- |", *rows, ""])


def fill_page(page: str, result: str, title: str | None = None) -> None:
    """Puts a result into a page of docs and its Chinese twin, between ``<!-- RESULT -->`` and ``<!-- end of RESULT -->``."""
    filled = text_of(RESULTS / f"{result}.json", level=3, title=title).rstrip()
    for each in (page, page.replace(".md", ".zh.md")):
        put_between(each, result, filled)


def put_between(page: str, result: str, filled: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    before, mark, rest = text.partition(f"<!-- {result} -->\n")
    _, end, after = rest.partition(f"<!-- end of {result} -->")
    if not mark or not end:
        raise SystemExit(f"docs/{page}: found no marks <!-- {result} --> and <!-- end of {result} -->")
    write_whole(DOCS / page, before + mark + filled + "\n" + end + after)


def main() -> None:
    found = sorted(RESULTS.glob("*.json"))
    write_whole(DOCS / "benchmarks.md", "\n".join([OPENING, catalogue(found), *(text_of(path) for path in found)]))
    for page, result, title in PAGES:
        if (RESULTS / f"{result}.json").exists():
            fill_page(page, result, title)


if __name__ == "__main__":
    main()
