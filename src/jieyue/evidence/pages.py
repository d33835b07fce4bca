"""The page of all claims: from measured cells alone, so that every number on it can be traced to a line of a file.

``write(outcomes, OUT)``: ``reproduction.html`` (one file, opens offline), ``.json`` and ``.md`` (``.zh.md`` in Chinese) of this run.
``publish(outcomes, DOCS)``: the cells become ``DOCS/results/SCALE/CLAIM.jsonl``; then ``DOCS/reproduction.md`` and ``.html`` are
made from all cells that lie there, of this run and of earlier ones, the Markdown in every language of reports (``reproduction.zh.md``).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from math import fsum
from pathlib import Path

from jieyue.report import Fact, Picture, Report, Section, save_picture, write_whole

from .articles import ARTICLES, choose, claims_of
from .claims import FAILS, HOLDS, SCALES, UNDECIDED, UNTESTED, Claim, Result, Verdict
from .pretrained.pages import BESIDE, PART, tell_beside, tell_pretrained
from .pretrained.table import TEMPLATES, template_of
from .pretrained.template import bind
from .pretrained.weights import Weights
from .running import Outcome, encode, parse

__all__ = ["build", "publish", "published", "write"]

NAME = "reproduction"
_WRITTEN = {"en": "Written by `jieyue reproduce`; not by hand.", "zh": "由 `jieyue reproduce` 写出，不是手写的。"}
_MACHINE = ("processor", "cores", "threads", "system", "device", "python", "torch", "transformers", "jieyue")


def write(outcomes: Sequence[Outcome], out: Path, language: str = "en") -> list[Path]:
    """The pages of these outcomes in a folder, told in ``language``; the paths that were written."""
    report = build(outcomes)
    html = write_whole(out / f"{NAME}.html", report.in_language(language).html())
    return [html, write_whole(out / f"{NAME}.json", report.json()), _write_markdown(report, out, language)]


def publish(outcomes: Sequence[Outcome], docs: Path) -> list[Path]:
    """The cells of these outcomes into ``docs/results``, and the pages of everything that lies there."""
    written = []
    for outcome in outcomes:
        if outcome.results:
            lines = [encode(outcome.claim, result) for result in outcome.results]
            written.append(write_whole(_cells_path(docs, outcome.scale, outcome.claim), "\n".join(lines) + "\n"))
    report = build(published(docs))
    written += [_write_markdown(report, docs, language) for language in _WRITTEN]
    return [*written, write_whole(docs / f"{NAME}.html", report.html())]


def published(docs: Path) -> list[Outcome]:
    """Every claim at every scale of which ``docs/results`` holds cells of its version, in the articles' order.

    Then those on pretrained weights, each model's in a file of its own, ``CLAIM.MODEL.jsonl``.
    """
    found = [
        Outcome(claim, scale, results)
        for claim in choose()
        for scale in SCALES
        if (results := _kept(_cells_path(docs, scale, claim), claim.version))
    ]
    for template in TEMPLATES:
        for scale in SCALES:
            for path in sorted((docs / "results" / scale).glob(f"{template.claim.key}.*.jsonl")):
                if results := _kept(path, template.claim.version):
                    claim = bind(template, Weights(results[0].cell.settings["model"]))
                    found.append(Outcome(claim, scale, results))
    return found


def _kept(path: Path, version: int) -> list[Result]:
    """The cells of this version that the file holds; none where it is not there."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    current = [line for line in lines if line.strip() and json.loads(line).get("version") == version]
    return [parse(line, str(path)) for line in current]


def build(outcomes: Sequence[Outcome]) -> Report:
    """The report: all verdicts, then every claim with the article's number beside ours, then machines and commands."""
    report = Report("Every claim of the eight articles, repeated")
    everything = [(outcome, outcome.verdict) for outcome in outcomes]
    pretrained = [pair for pair in everything if template_of(pair[0].claim.key) is not None]
    judged = [pair for pair in everything if template_of(pair[0].claim.key) is None]
    if judged or not pretrained:
        _tell_verdicts(report, judged)
    for article in ARTICLES:
        for claim in claims_of(article):
            own = [(outcome, verdict) for outcome, verdict in judged if outcome.claim.key == claim.key]
            if own:
                section = report.section(f"Article {article.number}: {claim.sentence}")
                _tell_claim(section, own)
                tell_beside(section, claim.key, pretrained)
    tell_pretrained(report, pretrained, _tell_claim)
    _tell_machines(report, outcomes)
    _tell_full(report)
    return report


def _tell_verdicts(report: Report, judged: Sequence[tuple[Outcome, Verdict]]) -> None:
    section = report.section("Verdicts")
    scales = [scale for scale in SCALES if any(outcome.scale == scale for outcome, _ in judged)]
    for scale in scales:
        words = [verdict.word for outcome, verdict in judged if outcome.scale == scale]
        results = [result for outcome, _ in judged for result in outcome.results if outcome.scale == scale]
        section.fact(
            f"claims that hold, {scale}", words.count(HOLDS),
            how=f"of {len(words)}; {words.count(FAILS)} fail, {words.count(UNDECIDED)} are not decided, "
            f"{words.count(UNTESTED)} cannot be tested here", key=True,
        )  # fmt: skip
        if results:
            cells = _once(results)
            seconds = fsum(result.seconds for result in cells)
            section.fact(f"total time, {scale}", seconds, "seconds", how=f"{len(cells)} cells", key=True)
    seeds = sorted({result.cell.seed for outcome, _ in judged for result in outcome.results})
    section.note(
        "A claim holds where the 95 % interval over the seeds lies wholly on the claimed side, and fails where it lies wholly on "
        f"the other; where it reaches the border nothing was decided, whatever the mean. Seeds: {', '.join(map(str, seeds)) or 'none'}."
    )
    words_of = {(outcome.claim.key, outcome.scale): verdict.word for outcome, verdict in judged}
    claims = dict.fromkeys(outcome.claim for outcome, _ in judged)
    rows = [
        [str(claim.article), claim.sentence, *(words_of.get((claim.key, scale), "not run") for scale in scales)]
        for claim in claims
    ]
    section.table(["article", "claim", *scales], rows)


def _tell_claim(section: Section, judged: Iterable[tuple[Outcome, Verdict]]) -> None:
    for outcome, verdict in judged:
        seconds = fsum(result.seconds for result in outcome.results)
        section.fact(f"scale {outcome.scale}", verdict.word, how=verdict.why)
        section.fact("the article", outcome.claim.articles_number)
        if not outcome.results:
            continue
        seeds = len({result.cell.seed for result in outcome.results})
        section.fact(
            "measured in",
            seconds,
            "seconds",
            how=f"{len(outcome.results)} cells, {seeds} seeds; results/{outcome.scale}/{outcome.claim.key}.jsonl",
        )
        if verdict.rows:
            section.table(list(verdict.columns), verdict.rows, title=f"Scale {outcome.scale}")
        if verdict.lines is not None:
            section.picture(verdict.lines)


def _tell_machines(report: Report, outcomes: Sequence[Outcome]) -> None:
    section = report.section("Machines and commands")
    results = _once([result for outcome in outcomes for result in outcome.results])
    for name in _MACHINE:
        values = dict.fromkeys(str(result.machine[name]) for result in results if name in result.machine)
        if values:
            section.fact(name, ", ".join(values))
    for command in dict.fromkeys(result.command for result in results if result.command):
        cells = [result for result in results if result.command == command]
        section.fact(command, fsum(result.seconds for result in cells), "seconds", how=f"{len(cells)} cells")


def _tell_full(report: Report) -> None:
    rows = [[str(claim.article), claim.key, command] for claim in choose() for command in claim.full]
    if rows:
        report.section("The full scale").table(
            ["article", "claim", "command"],
            rows,
            note="Not run here: for a machine with a GPU, the hub's checkpoints and the full data.",
        )


def _once(results: Sequence[Result]) -> list[Result]:
    """Each measured cell once, though several claims may be judged by it."""
    return list({repr(result): result for result in results}.values())


def _write_markdown(report: Report, folder: Path, language: str = "en") -> Path:
    """Markdown in which every section's pictures follow it, drawn into ``folder/reproduction``; all languages share them."""
    said = report.in_language(language)
    head, *_ = Report(said.title, about=said.about).markdown().split("\n\n")
    parts = [head.strip(), _WRITTEN[language]]
    drawn = set()
    for number, (section, told) in enumerate(zip(report.sections, said.sections, strict=True)):
        _, _, text = Report(told.title, language=language, sections=[told]).markdown().partition("\n\n")
        parts.append(text.rstrip())
        if any(isinstance(item, Fact) and item.what == BESIDE for item in section.items):
            part = next(other for other, own in zip(said.sections, report.sections, strict=True) if own.title == PART)
            parts.append(f"[{part.title}](#{part.title.lower().replace(' ', '-')})")
        pictures, titles = ([one for one in each.items if isinstance(one, Picture)] for each in (section, told))
        for place, (picture, translated) in enumerate(zip(pictures, titles, strict=True)):
            file = save_picture(picture, folder / NAME / f"{number}-{place}.svg")
            parts.append(f"![{translated.title}]({NAME}/{file.name})")
            drawn.add(file)
    for old in set((folder / NAME).glob("[0-9]*-[0-9]*.svg")) - drawn:  # of sections that are elsewhere now
        old.unlink()
    suffix = "" if language == "en" else f".{language}"
    return write_whole(folder / f"{NAME}{suffix}.md", "\n\n".join(parts) + "\n")


def _cells_path(docs: Path, scale: str, claim: Claim) -> Path:
    return docs / "results" / scale / f"{claim.key}.jsonl"
