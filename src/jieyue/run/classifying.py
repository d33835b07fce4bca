"""Classification as a run sees it: where labelled texts come from, the baselines, and how quality is told."""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jieyue.data.corpora import heldout_path
from jieyue.data.findings import Findings
from jieyue.data.labelled import Labelled, note_repeated, shared_texts
from jieyue.data.qa_files import Question, read_questions
from jieyue.errors import InputError
from jieyue.metrics.calibration import calibration_error
from jieyue.metrics.classification import gain_over, most_frequent, naive_bayes, score_labels
from jieyue.recipes import classify as classifying
from jieyue.report import Estimate, Picture, Report

from .reading.sources import SHIPPED, read_training
from .tasks import Card, Curve, Task
from .values import Materials, Prepared, Sources
from .watch import SILENT, Watch

__all__ = ["TASK", "topics_of"]

CURVE_EXAMPLES = 300
SHIPPED_QUESTIONS = 20_000  # of the corpus that ships, about a third as many passages
QUALITY = "Quality on held-out examples"


def topics_of(questions: Iterable[Question]) -> list[Labelled]:
    """Every distinct passage of a corpus with its topic."""
    found: dict[str, Labelled] = {}
    for question in questions:
        for passage in question.passages:
            found.setdefault(passage.text, Labelled(passage.text, question.topic or None))
    return list(found.values())


def _settings(materials: Materials) -> classifying.ClassifySettings:
    return materials.settings or classifying.ClassifySettings()


def _read(materials: Materials) -> tuple[list[Labelled], Findings]:
    if not materials.data:
        return _shipped(materials.limit)
    return classifying.read(materials.data, skip_bad=materials.skip_bad, columns=_settings(materials).columns)


def _shipped(limit: int | None) -> tuple[list[Labelled], Findings]:
    questions, _ = read_training(
        (), SHIPPED_QUESTIONS if limit is None else min(SHIPPED_QUESTIONS, 5 * limit), 0, False
    )
    return _counted(topics_of(questions))


def _counted(examples: list[Labelled]) -> tuple[list[Labelled], Findings]:
    findings = Findings()
    findings.counts.update(examples=len(examples), labels=len({one.label for one in examples}))
    note_repeated(examples, findings)
    return examples, findings


def _read_held_out(materials: Materials) -> tuple[list[Labelled], Findings]:
    if materials.held_out:
        return classifying.read(materials.held_out, skip_bad=materials.skip_bad, columns=_settings(materials).columns)
    return _counted(topics_of(read_questions(heldout_path())[0]))


def _open(materials: Materials, seed: int) -> Sources:
    """Training examples, 2 % of them (at most 400) set aside, and those to judge by: named, shipped, or a tenth."""
    if materials.limit is not None and materials.limit < 20:
        raise InputError(f"limit={materials.limit}: expected at least 20 examples")
    name = ", ".join(Path(path).name for path in materials.data) or SHIPPED
    train, findings = _read(materials)
    judged_findings = None
    if materials.held_out or not materials.data:
        judged, judged_findings = _read_held_out(materials)
    else:
        train, judged = _split(train, 0.1)
    train = [one for one in train if one.label is not None][: materials.limit]
    judged = [one for one in judged if one.label is not None][: materials.limit]
    fit, aside = _split(train, min(0.02, 400 / max(1, len(train))))
    if not fit or not judged:
        raise InputError(
            f"{name}: {len(train)} labelled examples are too few to hold some out; name a file (--held-out)"
        )
    return Sources(name, fit, aside or fit[-20:], judged, findings, judged_findings, shared_texts(fit, judged))


def _split(examples: Sequence[Labelled], share: float) -> tuple[list[Labelled], list[Labelled]]:
    """(rest, held out), told by a checksum of the text; order is kept, equal texts stay together."""
    rest, held = list[Labelled](), list[Labelled]()
    for one in examples:
        (held if zlib.crc32(one.text.encode()) / 2**32 < share else rest).append(one)
    return rest, held


def _check(materials: Materials) -> tuple[Sequence[Labelled], dict[str, Any], Mapping[str, int]]:
    examples, own = _read(materials)
    findings, shared = {"training files": own}, dict[str, int]()
    if materials.held_out or not materials.data:
        judged, findings["held-out files"] = _read_held_out(materials)
        shared = shared_texts(examples, judged)
    return examples, findings, shared


def _read_judged(files: Sequence[str | Path], skip_bad: bool, settings: classifying.ClassifySettings) -> Sources:
    if not files:
        judged, findings = _read_held_out(Materials())
        return Sources(SHIPPED, _shipped(None)[0], [], judged, findings, findings)
    judged, findings = classifying.read(files, skip_bad=skip_bad, columns=settings.columns)
    return Sources(", ".join(Path(path).name for path in files), [], [], judged, findings, findings)


@dataclass(frozen=True)
class Judged:
    """Answers in the order of the examples, facts, and seconds of answering."""

    examples: Sequence[Labelled]
    answers: list[classifying.Choice]
    scores: dict[str, Any]
    baselines: dict[str, Any]
    seconds: float
    batch_size: int


def _judge(
    model: Any,
    tokenizer: Any,
    sources: Sources,
    settings: classifying.ClassifySettings,
    *,
    batch_size: int = 32,
    watch: Watch = SILENT,
) -> Judged:
    examples = [one for one in sources.held_out if one.label is not None]
    if not examples:
        raise InputError(f"{sources.name}: found no example whose label is known, expected some to judge by")
    started = time.perf_counter()
    with watch.progress("classifying") as update:
        answers = classifying.answer(
            model, tokenizer, examples, settings, batch_size=batch_size, progress=lambda done, of: update(done, of, {})
        )
    seconds = time.perf_counter() - started
    scores = classifying.score(answers, examples)
    right = [own.label == one.label for own, one in zip(answers, examples, strict=True)]
    scores["calibration_error"], _ = calibration_error([one.confidence for one in answers], right)
    scores["labels_unseen"] = sum(one.label not in settings.labels for one in examples)
    found = _baselines(sources.train, examples, answers) if sources.train else {}
    return Judged(examples, answers, scores, found, seconds, batch_size)


def _baselines(
    training: Sequence[Labelled], examples: Sequence[Labelled], answers: Sequence[classifying.Choice]
) -> dict[str, Any]:
    """Facts of the two baselines, the better one's name, and the gain over it with its paired interval."""
    labels, golds = [str(one.label) for one in training], [str(one.label) for one in examples]

    def whole(one: Labelled) -> str:
        return f"{one.text} {one.pair}"

    guesses = {
        "most frequent label": [most_frequent(labels)] * len(examples),
        "naive Bayes": naive_bayes([whole(one) for one in training], labels)([whole(one) for one in examples]),
    }
    facts = {name: score_labels(own, golds) for name, own in guesses.items()}
    best = max(facts, key=lambda name: facts[name]["accuracy"])
    gain, interval = gain_over([one.label for one in answers], guesses[best], golds)
    return {"systems": facts, "best": best, "gain": gain, "gain_interval": interval}


def _tell(report: Report, judged: Judged, fitted: Mapping[str, Any]) -> None:
    scores, section = judged.scores, report.section(QUALITY)
    how = f"{scores['examples']} examples, {len(scores['by_label'])} labels; 95 % bootstrap interval"
    section.fact("accuracy", scores["accuracy"], "share", how, interval=scores.get("accuracy_interval"), key=True)
    section.fact("macro-F1", scores["macro_f1"], "share", how, interval=scores.get("macro_f1_interval"), key=True)
    section.fact("expected calibration error", scores["calibration_error"], "share", "ten bins")
    if scores["labels_unseen"]:
        section.fact("labels that training never showed", scores["labels_unseen"], how="examples; always wrong")
    systems = {"this classifier": scores, **judged.baselines.get("systems", {})}
    if judged.baselines:
        found = judged.baselines
        how = f"accuracy over “{found['best']}”; 95 % paired bootstrap interval"
        section.fact("gain over the best baseline", found["gain"], "share", how, interval=found["gain_interval"])
    rows = [[name, own["accuracy"], own["macro_f1"]] for name, own in systems.items()]
    section.table(["system", ("accuracy", "share"), ("macro-F1", "share")], rows, title="Beside the baselines")
    bars: dict[str, Any] = {name: own["accuracy"] for name, own in systems.items()}
    if "accuracy_interval" in scores:
        bars["this classifier"] = Estimate(scores["accuracy"], *scores["accuracy_interval"])
    section.picture(Picture.bars("Accuracy", bars, value=("accuracy", "share")))
    section.fact(
        "speed", len(judged.examples) / max(judged.seconds, 1e-9), "per second", f"{judged.batch_size} at once"
    )
    section = report.section("Each label")
    by_label = [[name, *own.values()] for name, own in scores["by_label"].items()]
    section.table(
        ["label", "examples", ("precision", "share"), ("recall", "share"), ("F1", "share")],
        by_label,
        title="Each label",
    )
    if scores["mistakes"]:
        section.table(["label", "taken for", "times"], scores["mistakes"], title="Most frequent mistakes")
    section = report.section("Classified examples")
    step = max(1, len(judged.examples) // 12)
    shown = [
        [one.text[:160], str(one.label), own.label, own.confidence]
        for one, own in list(zip(judged.examples, judged.answers, strict=True))[::step][:12]
    ]
    section.table(["text", "label", "found", ("confidence", "share")], shown, note="Every so many, not picked by hand.")


def _accuracy(model: Any, prepared: Prepared) -> float:
    asked = prepared.sources.set_aside[:CURVE_EXAMPLES]
    answers = classifying.answer(model, prepared.model.tokenizer, asked, prepared.settings)
    return sum(own.label == one.label for own, one in zip(answers, asked, strict=True)) / len(asked)


def _resolved(settings: classifying.ClassifySettings, examples: Sequence[Labelled]) -> classifying.ClassifySettings:
    return settings if settings.labels else replace(settings, labels=classifying.label_set(examples))


def _config(settings: classifying.ClassifySettings) -> dict[str, Any]:
    names = dict(enumerate(settings.labels))
    return {"num_labels": len(names), "id2label": names, "label2id": {name: at for at, name in names.items()}}


def _usage(folder: str) -> str:
    return f'from transformers import pipeline\n\npipeline("text-classification", model="{folder}")("…")'


TASK = Task(
    recipe=classifying.RECIPE,
    title="Classification",
    noun="examples",
    open_sources=_open,
    check=_check,
    texts=lambda examples: list(dict.fromkeys(text for one in examples for text in (one.text, one.pair) if text)),
    settings=lambda materials, seed: classifying.ClassifySettings(),  # nothing to decide
    judge=_judge,
    tell=_tell,
    read_judged=_read_judged,
    card=Card(
        usage=_usage,
        limits="The labels are those of its training data. The numbers below hold for texts like those it was judged on.",
        tags=("text-classification",),
    ),
    curve=Curve(
        title="Accuracy while training, on examples set aside", quantity="accuracy", unit="share", measure=_accuracy
    ),
    shown=(QUALITY,),
    numbers=lambda judged: {"accuracy": judged.scores["accuracy"], "macro-F1": judged.scores["macro_f1"]},
    resolved=_resolved,
    config=_config,
    new_heads=("classification",),
)
