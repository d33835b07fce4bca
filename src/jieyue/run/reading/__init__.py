"""Reading as a run sees it: where questions come from, the curriculum, calibration, baselines, and how quality is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jieyue.data.corpora import heldout_path
from jieyue.data.findings import overlap
from jieyue.data.qa_files import Question, read_questions
from jieyue.hf.classic_presets import CLASSIC_PRESETS
from jieyue.hf.presets import PRESETS
from jieyue.recipes import read as reading
from jieyue.report import Report
from jieyue.run.tasks import Card, Curve, Task
from jieyue.run.values import Course, Materials, Prepared, Sources

from .asking import open_reader, read
from .judging import Judged, dozen, judge
from .sources import open_sources, read_training, texts_of
from .stages import curriculum_of, stages_of
from .story import tell_examples, tell_quality

__all__ = ["TASK", "default_settings", "open_reader", "read"]

CURVE_QUESTIONS = 200


def default_settings(materials: Materials, seed: int = 0) -> reading.ReadSettings:
    """The article's lengths; for a preset on the corpus that ships, ones that fit its short answers and passages."""
    if materials.model in {*PRESETS, *CLASSIC_PRESETS} and not materials.data:
        return reading.ReadSettings(answer_slots=8, question_tokens=32, window_tokens=192, overlap_tokens=48, seed=seed)
    return reading.ReadSettings(seed=seed)


def _open(materials: Materials, seed: int) -> Sources:
    return open_sources(
        materials.data, materials.held_out, questions=materials.limit, seed=seed, skip_bad=materials.skip_bad
    )


def _check(materials: Materials) -> tuple[Sequence[Question], dict[str, Any], Mapping[str, int]]:
    questions, own = read_training(materials.data, materials.limit, 0, materials.skip_bad)
    findings, shared = {"training files": own}, {}
    if materials.held_out or not materials.data:
        judged, findings["held-out files"] = read_questions(
            materials.held_out or heldout_path(), skip_bad=materials.skip_bad
        )
        shared = overlap(questions, judged)
    return questions, findings, shared


def _read_judged(files: Sequence[str | Path], skip_bad: bool, settings: reading.ReadSettings) -> Sources:
    if not files:
        return open_sources()
    questions, findings = read_questions(files, skip_bad=skip_bad)
    return Sources(", ".join(Path(path).name for path in files), [], [], questions, findings, findings)


def _stages(course: Course, is_preset: bool, questions: Sequence[Question]) -> list[tuple[float, Sequence[Question]]]:
    return [*stages_of(curriculum_of(course, is_preset), questions, course.seed)]


def _calibrated(prepared: Prepared, model: Any) -> tuple[reading.ReadSettings, dict[str, Any]]:
    """The settings with the temperature that fits the questions set aside."""
    asked = prepared.sources.set_aside
    found = reading.calibrate(reading.answer(model, prepared.model.tokenizer, asked, prepared.settings), asked)
    return replace(prepared.settings, temperature=found.temperature), {
        "temperature": found.temperature,
        "questions": found.count,
    }


def _exact_match(model: Any, prepared: Prepared) -> float:
    asked = prepared.sources.set_aside[:CURVE_QUESTIONS]
    answers = reading.answer(model, prepared.model.tokenizer, asked, prepared.settings)
    return float(reading.score(answers, asked)["exact_match"])


def _tell(report: Report, judged: Judged, fitted: Mapping[str, Any]) -> None:
    tell_quality(report, judged.scores, judged.greedy, judged.baselines, {"questions": "the training run's", **fitted})
    shown = dozen(judged)
    tell_examples(
        report,
        [judged.questions[number] for number in shown],
        [judged.answers[number] for number in shown],
        [judged.right[number] for number in shown],
    )
    rate = len(judged.questions) / max(judged.seconds, 1e-9)
    how = f"{judged.way}, {judged.batch_size} windows at once, tokenization included"
    report.section("Quality on held-out questions").fact("reading speed", rate, "per second", how)


def _numbers(judged: Judged) -> dict[str, float]:
    return {name: float(judged.scores[name]) for name in ("exact_match", "f1")}


def _usage(folder: str) -> str:
    return (
        "from jieyue.run.reading import read\n\n"
        f'print(read("{folder}", "a question", ["a passage ..."]))\n\n'
        "# from the command line: place, confidence, long passages, several passages\n"
        "# jieyue read FOLDER --question '…' --file passage.txt"
    )


TASK = Task(
    recipe=reading.RECIPE,
    title="Reading",
    noun="questions",
    open_sources=_open,
    check=_check,
    texts=texts_of,
    settings=default_settings,
    judge=judge,
    tell=_tell,
    read_judged=_read_judged,
    card=Card(
        usage=_usage,
        limits="Answers are spans of the given passage. The numbers below hold for questions like those it was judged on.",
        tags=("question-answering",),
    ),
    curve=Curve(
        title="Exact match while training, on questions set aside",
        quantity="exact match",
        unit="share",
        measure=_exact_match,
    ),
    stages=_stages,
    fitted=_calibrated,
    shown=("Quality on held-out questions",),
    new_heads=("span",),
    numbers=_numbers,
)
