"""Masked-LM training as a run sees it: where text comes from, and how the quality of guesses is told."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jieyue.data.corpora import heldout_path
from jieyue.data.findings import Findings
from jieyue.data.plain import note_repeated_lines, shared_lines, split_blocks
from jieyue.data.qa_files import read_questions
from jieyue.errors import InputError
from jieyue.recipes import mlm
from jieyue.report import Report

from .classifying import topics_of
from .reading.sources import SHIPPED, read_training
from .tasks import Card, Curve, Task
from .values import Materials, Prepared, Sources
from .watch import SILENT, Watch

__all__ = ["TASK"]

CURVE_LINES = 200
SHIPPED_QUESTIONS = 60_000
QUALITY = "Quality on held-out text"


def _shipped(limit: int | None) -> tuple[list[str], Findings]:
    count = SHIPPED_QUESTIONS if limit is None else min(SHIPPED_QUESTIONS, 5 * limit)
    return _counted([one.text for one in topics_of(read_training((), count, 0, False)[0])])


def _counted(lines: list[str]) -> tuple[list[str], Findings]:
    findings = Findings()
    findings.counts.update(lines=len(lines), characters=sum(map(len, lines)))
    note_repeated_lines(lines, findings)
    return lines, findings


def _read(materials: Materials) -> tuple[list[str], Findings]:
    return mlm.read(materials.data, skip_bad=materials.skip_bad) if materials.data else _shipped(materials.limit)


def _read_held_out(materials: Materials) -> tuple[list[str], Findings]:
    if materials.held_out:
        return mlm.read(materials.held_out, skip_bad=materials.skip_bad)
    return _counted([one.text for one in topics_of(read_questions(heldout_path())[0])])


def _open(materials: Materials, seed: int) -> Sources:
    """Lines to train on, 2 % of them (at most 400) set aside, and those to judge by: named, shipped, or a tenth."""
    name = ", ".join(Path(path).name for path in materials.data) or SHIPPED
    train, findings = _read(materials)
    train, judged_findings = train[: materials.limit], None
    if materials.held_out or not materials.data:
        judged, judged_findings = _read_held_out(materials)
    else:
        train, judged = split_blocks(train, 0.1)
    judged = judged[: materials.limit]
    fit, aside = split_blocks(train, min(0.02, 400 / max(1, len(train))))
    if not fit or not judged:
        raise InputError(f"{name}: {len(train)} lines are too few to hold some out; name a file (--held-out)")
    return Sources(name, fit, aside or fit[-20:], judged, findings, judged_findings, shared_lines(fit, judged))


def _check(materials: Materials) -> tuple[Sequence[str], dict[str, Any], Mapping[str, int]]:
    lines, own = _read(materials)
    findings, shared = {"training files": own}, dict[str, int]()
    if materials.held_out or not materials.data:
        judged, findings["held-out files"] = _read_held_out(materials)
        shared = shared_lines(lines, judged)
    return lines, findings, shared


def _read_judged(files: Sequence[str | Path], skip_bad: bool, settings: mlm.MaskSettings) -> Sources:
    judged, findings = mlm.read(files, skip_bad=skip_bad) if files else _read_held_out(Materials())
    name = ", ".join(Path(path).name for path in files) or SHIPPED
    return Sources(name, [] if files else _shipped(None)[0], [], judged, findings, findings)


@dataclass(frozen=True)
class Judged:
    """Facts of ``mlm.score``, the pseudo-perplexity, the baseline that only counts tokens, and seconds."""

    scores: dict[str, Any]
    pseudo_perplexity: float | None
    pseudo_tokens: int
    counting: dict[str, float]
    seconds: float


def _judge(
    model: Any,
    tokenizer: Any,
    sources: Sources,
    settings: mlm.MaskSettings,
    *,
    batch_size: int = 32,
    watch: Watch = SILENT,
) -> Judged:
    started = time.perf_counter()
    with watch.progress("guessing hidden tokens") as update:
        answers = mlm.answer(
            model,
            tokenizer,
            sources.held_out,
            settings,
            batch_size=batch_size,
            progress=lambda done, total: update(done, total, {}),
        )
    seconds = time.perf_counter() - started
    found, count = None, 0
    if settings.pseudo_rows:
        found, count = mlm.pseudo(model, tokenizer, sources.held_out, settings, batch_size=batch_size)
    return Judged(mlm.score(answers), found, count, _counting(tokenizer, sources, settings), seconds)


def _counting(tokenizer: Any, sources: Sources, settings: mlm.MaskSettings) -> dict[str, float]:
    """The baseline without context: the training text's share of each token, add-one; on the very tokens that are hidden."""
    if not sources.train:
        return {}
    counts: Counter[int] = Counter()
    for row in mlm.encode(sources.train, tokenizer, settings)[0]:
        counts.update(row["input_ids"][1:-1].tolist())
    total, likeliest = sum(counts.values()) + len(tokenizer), counts.most_common(1)[0][0]
    hidden = [
        label
        for row in mlm.encode(sources.held_out, tokenizer, settings)[0]
        for label in mlm.hide(row, tokenizer, settings)["labels"].tolist()
    ]
    loss = -sum(math.log((counts[label] + 1) / total) for label in hidden) / len(hidden)
    return {"loss": loss, "accuracy": hidden.count(likeliest) / len(hidden)}


def _tell(report: Report, judged: Judged, fitted: Mapping[str, Any]) -> None:
    scores, section = judged.scores, report.section(QUALITY)
    how = f"{scores['tokens']} hidden tokens; 95 % bootstrap interval over rows"
    section.fact("loss", scores["loss"], "nats", how, interval=scores.get("loss_interval"), key=True)
    section.fact("accuracy", scores["accuracy"], "share", how, interval=scores.get("accuracy_interval"), key=True)
    section.fact("masked perplexity", scores["perplexity"], how="exp of the loss, many tokens hidden at once")
    if judged.pseudo_perplexity is not None:
        how = f"{judged.pseudo_tokens} tokens, each hidden alone"
        section.fact("pseudo-perplexity", judged.pseudo_perplexity, how=how, key=True)
    rows: list[list[Any]] = [["this model", scores["loss"], scores["accuracy"]]]
    if judged.counting:
        rows.append(["token counts, no context", judged.counting["loss"], judged.counting["accuracy"]])
    section.table(["system", ("loss", "nats"), ("accuracy", "share")], rows, title="Beside the baseline")
    section.fact("speed", scores["tokens"] / max(judged.seconds, 1e-9), "per second", "hidden tokens guessed")


def _loss(model: Any, prepared: Prepared) -> float:
    asked = prepared.sources.set_aside[:CURVE_LINES]
    return float(mlm.score(mlm.answer(model, prepared.model.tokenizer, asked, prepared.settings))["loss"])


def _usage(folder: str) -> str:
    return f'from transformers import pipeline\n\npipeline("fill-mask", model="{folder}")("… [MASK] …")'


TASK = Task(
    recipe=mlm.RECIPE,
    title="Masked language model",
    noun="lines",
    open_sources=_open,
    check=_check,
    texts=list,
    settings=lambda materials, seed: mlm.MaskSettings(seed=seed),
    judge=_judge,
    tell=_tell,
    read_judged=_read_judged,
    card=Card(
        usage=_usage,
        limits="A starting point for training on a task; it guesses hidden tokens of text like its training text.",
        tags=("fill-mask",),
    ),
    curve=Curve(title="Loss while training, on lines set aside", quantity="loss", unit="nats", measure=_loss),
    shown=(QUALITY,),
    numbers=lambda judged: {"accuracy": judged.scores["accuracy"], "loss": judged.scores["loss"]},
)
