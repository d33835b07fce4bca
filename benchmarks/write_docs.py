"""Writes docs/benchmarks.md and its pictures from the reports in benchmarks/results: numbers are never typed by hand.

jieyue bench attention --out benchmarks/results && python benchmarks/write_docs.py
"""

from pathlib import Path

from jieyue.report import Report, write_whole

ROOT = Path(__file__).parents[1]
RESULTS, DOCS = ROOT / "benchmarks" / "results", ROOT / "docs"
OPENING = """# Benchmarks

Written by `python benchmarks/write_docs.py` from the reports in `benchmarks/results`. Ratios are of one run, alternating repeats,
medians. "not measured": no such machine was at hand. Where a goal is missed the table says so.
"""


def main() -> None:
    parts = [OPENING]
    for path in sorted(RESULTS.glob("*.json")):
        report = Report.load(path)
        text = report.markdown(level=2)
        for number, picture in enumerate(report.pictures()):
            file = DOCS / "benchmarks" / f"{path.stem}-{number}.svg"
            picture.save(file)
            text += f"\n![{picture.title}](benchmarks/{file.name})\n"
        parts.append(text)
    write_whole(DOCS / "benchmarks.md", "\n".join(parts))


if __name__ == "__main__":
    main()
