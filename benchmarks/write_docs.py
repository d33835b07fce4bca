"""Writes docs/benchmarks.md, its Chinese twin and their pictures from the reports in benchmarks/results, never by hand.

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
    ("memory", "memory", "Waterfall"),
    ("memory", "memory-prediction", "Cells"),
    ("memory", "whole-process", "Runs"),
    ("memory", "memory-goals", "Goals"),
    ("memory", "method-price", "After 100 updates"),
    ("memory", "digits", None),
    ("attention", "attention", "Growth"),
]  # results, or a section, in other pages too
OPENING = {
    "en": """# Benchmarks

Written by `python benchmarks/write_docs.py` from the reports in `benchmarks/results`. Ratios are of one run, alternating repeats,
medians. "not measured": no such machine was at hand. Where a goal is missed the table says so. `make bench` runs them all.
""",
    "zh": """# 基准

由 `python benchmarks/write_docs.py` 根据 `benchmarks/results` 里的报告写出。比值取自同一次运行：各方轮流重复，取中位数。
“未测量”：手边没有相应的机器。没有达到目标的地方，表里会写明。`make bench` 运行全部基准。
""",
}
SOURCE = {
    "en": "From [{name}](../benchmarks/results/{name}), made by `{command}`.",
    "zh": "取自 [{name}](../benchmarks/results/{name})，由 `{command}` 生成。",
}
COLUMNS = {"en": ("report", "command"), "zh": ("报告", "命令")}
NO_REPORT = {"en": "no report yet", "zh": "还没有报告"}
TRAINERS = {
    "en": "[Whose update is the undivided batch's?](trainers.md)",
    "zh": "[谁的更新与不切分的整批相同？](trainers.zh.md)",
}


def text_of(path: Path, level: int = 2, title: str | None = None, language: str = "en") -> str:
    """A result, or its section ``title``, as Markdown; its pictures are drawn into docs/benchmarks."""
    report = Report.load(path)
    chosen = report if title is None else replace(report, sections=[s for s in report.sections if s.title == title])
    drawn = [(number, one) for number, one in enumerate(report.pictures()) if one in chosen.pictures()]
    said = chosen.in_language(language)
    text = said.markdown(level=level) + f"\n{SOURCE[language].format(name=path.name, command=COMMANDS[path.stem])}\n"
    for (number, picture), told in zip(drawn, said.pictures(), strict=True):
        file = DOCS / "benchmarks" / f"{path.stem}-{number}.svg"
        save_picture(picture, file)
        text += f"\n![{told.title}](benchmarks/{file.name})\n"
    return text


def catalogue(found: list[Path], language: str) -> str:
    """Every benchmark: its command, and its report where there is one."""
    titles = {"trainers": TRAINERS[language]}
    titles |= {path.stem: Report.load(path).in_language(language).title for path in found}
    rows = [f"| {titles.get(name, NO_REPORT[language])} | `{command}` |" for name, command in sorted(COMMANDS.items())]
    return "\n".join([f"| {' | '.join(COLUMNS[language])} |", "| --- | --- |", *rows, ""])


def fill_page(page: str, result: str, title: str | None = None) -> None:
    """Puts a result into a page of docs and its Chinese twin, between ``<!-- RESULT -->`` and ``<!-- end of RESULT -->``."""
    for suffix, language in ((".md", "en"), (".zh.md", "zh")):
        filled = text_of(RESULTS / f"{result}.json", level=3, title=title, language=language).rstrip()
        put_between(page + suffix, result, filled)


def put_between(page: str, result: str, filled: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    before, mark, rest = text.partition(f"<!-- {result} -->\n")
    _, end, after = rest.partition(f"<!-- end of {result} -->")
    if not mark or not end:
        raise SystemExit(f"docs/{page}: found no marks <!-- {result} --> and <!-- end of {result} -->")
    write_whole(DOCS / page, before + mark + filled + "\n" + end + after)


def whole(language: str) -> str:
    """The page of all results in a language."""
    found = sorted(RESULTS.glob("*.json"))
    parts = [OPENING[language], catalogue(found, language), *(text_of(path, language=language) for path in found)]
    return "\n".join(parts)


def main() -> None:
    for suffix, language in ((".md", "en"), (".zh.md", "zh")):
        write_whole(DOCS / f"benchmarks{suffix}", whole(language))
    for page, result, title in PAGES:
        if (RESULTS / f"{result}.json").exists():
            fill_page(page, result, title)


if __name__ == "__main__":
    main()
