"""What the report says of a reader: scores by kind of question, baselines, calibration, answered examples."""

from __future__ import annotations

from collections.abc import Sequence

from jieyue.data.qa_files import Question
from jieyue.metrics.extraction import exact_matches
from jieyue.report import Estimate, Example, Picture, Report
from jieyue.tasks import Facts

from .reader import Answer

__all__ = ["QUALITY", "dozen", "report_examples", "report_quality"]

QUALITY = "Quality on held-out questions"


def report_quality(
    report: Report,
    scores: Facts,
    beside: Facts,
    calibration: Facts,
) -> None:
    """Exact match, F1 and Final by kind of question, against greedy search (if any) and three baselines; calibration."""
    greedy, baselines = beside.get("greedy"), beside["baselines"]
    section = report.section(QUALITY)
    how = f"{scores['questions']} questions; rule: {scores['rule']}; maximum over gold answers"
    section.fact("exact match", scores["exact_match"], "share", how, interval=scores["exact_match_interval"], key=True)
    section.fact("F1", scores["f1"], "share", how, key=True)
    section.fact("Final", scores["final"], "share", "mean of exact match and F1", key=True)
    if "gain" in baselines:
        best = f"exact match on answerable questions, over “{baselines['best_baseline']}”; 95 % bootstrap interval"
        section.fact(
            "gain over the best baseline", baselines["gain"], "share", best, interval=baselines["gain_interval"]
        )
    parts = {
        "all": "all",
        "answerable": "answerable",
        "unseen": "answerable, answer never in training",
        "unanswerable": "unanswerable",
    }
    path = {} if greedy is None else {"this reader, greedy search": greedy}
    systems = {"this reader": scores, **path, **baselines["baselines"]}
    rows = []
    for part, words in parts.items():
        for name, facts in systems.items():
            own = facts if part == "all" else facts.get(part, {})
            if own.get("questions"):
                rows.append([words, name, own["questions"], own["exact_match"], own["f1"], own["final"]])
    columns: list[str | tuple[str, str]] = [
        "questions",
        "answers by",
        "number",
        ("exact match", "share"),
        ("F1", "share"),
        ("Final", "share"),
    ]
    others = "three baselines" if greedy is None else "the article's greedy search and three baselines"
    section.table(columns, rows, title=f"By kind of question, with {others}")
    bars = {
        name: facts["answerable"].get("exact_match", 0.0) for name, facts in systems.items() if "answerable" in facts
    }
    if "exact_match_interval" in scores.get("answerable", {}):
        low, high = scores["answerable"]["exact_match_interval"]
        bars["this reader"] = Estimate(bars["this reader"], low, high)
    section.picture(Picture.bars("Exact match on answerable questions", bars, value=("exact match", "share")))
    section = report.section("Confidence")
    section.fact(
        "temperature", calibration["temperature"], how=f"fitted on {calibration['questions']} questions set aside"
    )
    if "calibration_error" in scores:
        section.fact("expected calibration error", scores["calibration_error"], "share", "held-out questions, ten bins")
        bins = scores["calibration_bins"]
        points = {one["confidence"]: one["accuracy"] for one in bins}
        clouds = {"answers in ten bins": points, "perfectly calibrated": {0.0: 0.0, 1.0: 1.0}}
        section.picture(
            Picture.lines("Confidence and accuracy", clouds, x=("mean confidence", "share"), y=("share right", "share"))
        )


def report_examples(report: Report, questions: Sequence[Question], answers: Sequence[Answer]) -> None:
    """A dozen answered questions, right and wrong, answered and abstained, in each language."""
    right = exact_matches([one.text for one in answers], [(question.text, question.golds) for question in questions])
    chosen = []
    for number in dozen(questions):
        question, answer = questions[number], answers[number]
        passage = question.passages[max(answer.passage, 0)]
        chosen.append(
            Example(
                question=question.text,
                passage=passage.text,
                answer=answer.text,
                span=(answer.start, answer.end) if answer.text else None,
                gold=question.golds or (),
                gold_spans=passage.spans if question.golds else (),
                confidence=answer.confidence,
                right=bool(right[number]),
                title=question.title,
            )
        )
    report.section("Answered examples").examples(
        chosen, note="Taken in order from the held-out questions, not picked by hand."
    )


def dozen(questions: Sequence[Question], count: int = 12) -> list[int]:
    """Numbers of ``count`` questions for show, the same for the same questions.

    In turn from each kind (language, answerable or not), the first ones in order: chosen before any answer was seen.
    """
    kinds: dict[tuple[str, bool], list[int]] = {}
    for number, question in enumerate(questions):
        if question.golds is not None:
            kinds.setdefault((question.language, question.answerable), []).append(number)
    weights = {kind: (2 if kind[1] else 1) for kind in kinds}
    chosen: list[int] = []
    while len(chosen) < count and any(kinds.values()):
        for kind, numbers in kinds.items():
            for _ in range(weights[kind]):
                if numbers and len(chosen) < count:
                    step = max(1, len(numbers) // count)
                    chosen.append(numbers[0])
                    del numbers[:step]
    return sorted(chosen)
