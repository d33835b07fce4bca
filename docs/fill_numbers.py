"""Fills the tables of docs/articles from the reports in benchmarks/results: numbers are never typed by hand.

    python docs/fill_numbers.py

A page says what it wants in a mark, and everything down to the end mark is written anew; no rows named: all of them.

    <!-- numbers · attention.json · When each pays · full() · local(128) -->
    <!-- end of numbers -->

So for a picture of a result, by its title; ``benchmarks/write_docs.py`` draws it:

    <!-- picture · long.json · Price by length, untrained -->
    <!-- end of picture -->

``<!-- reproduced · 4 -->`` becomes the way to docs/reproduction.md, once ``jieyue reproduce`` has written it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from jieyue.report import Report, write_whole

ROOT = Path(__file__).parents[1]
RESULTS, ARTICLES = ROOT / "benchmarks" / "results", ROOT / "docs" / "articles"
BESIDE = ("long.md", "long.zh.md")  # pages of docs that have such tables too
COMMANDS = json.loads((ROOT / "benchmarks" / "commands.json").read_text(encoding="utf-8"))  # what makes each result
MARK = re.compile(r"<!-- numbers · (.+?) -->\n.*?<!-- end of numbers -->", re.S)
FROM = {"": "From [{name}](../../benchmarks/results/{name}), made by `{command}`{where}.",
        ".zh": "取自 [{name}](../../benchmarks/results/{name})，由 `{command}` 生成{where}。"}  # fmt: skip
AS_ABOVE = {"": "From [{name}](../../benchmarks/results/{name}), made as above.",
            ".zh": "取自 [{name}](../../benchmarks/results/{name})，由上面的命令生成。"}  # fmt: skip
NOT_YET = {"": "No report yet", ".zh": "还没有报告"}
PICTURE = re.compile(r"<!-- picture · (.+?) · (.+?) -->\n.*?<!-- end of picture -->", re.S)
REPRODUCED = re.compile(r"<!-- reproduced · (\d) -->\n.*?<!-- end of reproduced -->", re.S)
AGAIN = {"": "`jieyue reproduce {0}` makes an experiment of each claim, with seeds and intervals: [its results](../reproduction.md).",
         ".zh": "`jieyue reproduce {0}` 把每一条主张做成实验，有种子，有区间：[结果](../reproduction.zh.md)。"}  # fmt: skip
WHERE = {"": " ({processor}, threads: {threads})", ".zh": "（{processor}，线程数 {threads}）"}


def table(name: str, section: str, wanted: list[str], language: str) -> str:
    """The tables and facts of one section (or the table of that title), or the wanted rows of them, as Markdown."""
    report = Report.load(RESULTS / name)
    said = report.in_language("zh") if language else report
    inside, parts = False, []
    for block, told in zip(report.blocks(), said.blocks(), strict=True):
        if block.kind == "heading":
            inside = block.title == section
        elif (inside or block.title == section) and block.kind in ("table", "facts"):
            pairs = zip(block.rows, told.rows, strict=True)
            rows = [row for original, row in pairs if not wanted or original[0] in wanted]
            columns = told.columns or ("", "", "")[: len(block.rows[0])]
            if rows:
                title = f"**{told.title}**\n\n" if block.kind == "table" and told.title else ""
                parts.append(title + rendered(columns, rows, block.right))
    if not parts:
        raise SystemExit(f"{name} has no section {section!r} with rows {wanted}")
    return "\n\n".join(parts)


def rendered(columns: tuple[str, ...], rows: list[tuple[str, ...]], right: tuple[bool, ...]) -> str:
    def cell(text: str) -> str:
        return text.replace("|", "\\|").replace("_", "\\_")

    lines = [columns, tuple("---:" if number else "---" for number in right), *rows]
    return "\n".join("| " + " | ".join(cell(text) for text in line) + " |" for line in lines)


def not_there(name: str, language: str) -> str:
    """What stands in place of a result that a command makes, and that is not there yet; empty where it is."""
    command = COMMANDS.get(Path(name).stem)
    return "" if command is None or (RESULTS / name).is_file() else f"{NOT_YET[language]}: `{command}`"


def shown(name: str, title: str, language: str) -> str:
    """The picture of that title in a result, where ``write_docs`` drew it."""
    report = Report.load(RESULTS / name)
    said = report.in_language("zh") if language else report
    for number, (picture, told) in enumerate(zip(report.pictures(), said.pictures(), strict=True)):
        if picture.title == title:
            return f"![{told.title}](../../docs/benchmarks/{Path(name).stem}-{number}.svg)"
    raise SystemExit(f"{name} has no picture {title!r}")


def source(name: str, language: str, again: bool = False) -> str:
    """Where the numbers are from: file, command, machine; the file alone where the page said it before."""
    if again:
        return AS_ABOVE[language].format(name=name)
    facts = {item.what: item for _, item in Report.load(RESULTS / name).facts()}
    where = ""
    if "processor" in facts and "threads" in facts:
        where = WHERE[language].format(threads=facts["threads"].value, processor=facts["processor"].value)
    return FROM[language].format(name=name, command=COMMANDS[Path(name).stem], where=where)


def filled(text: str, language: str = "", up: str = "../..") -> str:
    """A page with its tables and pictures made anew; ``up``: the way from its folder to the top."""
    said = set[str]()

    def one(match: re.Match[str]) -> str:
        name, section, *wanted = match[1].split(" · ")
        if missing := not_there(name, language):
            return f"<!-- numbers · {match[1]} -->\n{missing}\n<!-- end of numbers -->"
        body = table(name, section, wanted, language)
        told = source(name, language, again=name in said).replace("../..", up)
        said.add(name)
        return f"<!-- numbers · {match[1]} -->\n{body}\n\n{told}\n<!-- end of numbers -->"

    def picture(match: re.Match[str]) -> str:
        line = "" if not_there(match[1], language) else shown(match[1], match[2], language)
        line = line.replace("../../docs", f"{up}/docs").replace("../docs/", "")
        return f"<!-- picture · {match[1]} · {match[2]} -->\n{line}\n<!-- end of picture -->"

    def again(match: re.Match[str]) -> str:
        body = AGAIN[language].format(match[1]) + "\n" if (ROOT / "docs" / "reproduction.md").is_file() else ""
        return f"<!-- reproduced · {match[1]} -->\n{body}<!-- end of reproduced -->"

    return REPRODUCED.sub(again, PICTURE.sub(picture, MARK.sub(one, text)))


def pages() -> list[tuple[Path, str]]:
    """Each page with its language: "" or ".zh"."""
    paths = [*sorted(ARTICLES.glob("*.md")), *(ROOT / "docs" / name for name in BESIDE)]
    return [(path, ".zh" if path.name.endswith(".zh.md") else "") for path in paths]


def up_from(path: Path) -> str:
    """The way from a page to the top of the repository."""
    return "/".join([".."] * len(path.relative_to(ROOT).parent.parts))


def main() -> None:
    for path, language in pages():
        write_whole(path, filled(path.read_text(encoding="utf-8"), language, up_from(path)))


if __name__ == "__main__":
    main()
