"""Where the questions of a reading run come from: files, or the corpus that ships."""

from __future__ import annotations

import json
import tempfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from jieyue.data.corpora import compose, heldout_path
from jieyue.data.findings import Findings, overlap
from jieyue.data.qa_files import Question, read_questions
from jieyue.errors import InputError
from jieyue.run.values import Sources

__all__ = ["SHIPPED", "open_sources", "read_training", "split_by_passage", "texts_of"]

SHIPPED = "the corpus that ships"


def open_sources(
    data: Sequence[str | Path] = (),
    held_out: Sequence[str | Path] = (),
    *,
    questions: int | None = None,
    seed: int = 0,
    skip_bad: bool = False,
) -> Sources:
    """Reads or composes everything a reading run needs.

    Without ``data`` the corpus that ships: ``questions`` of it (60,000) composed with ``seed``, and its held-out file.
    With ``data`` but no ``held_out`` a tenth of the passages is held out. A part of the training passages (2 %, at most
    400 questions) is set aside for calibrating the confidence, so that held-out questions only ever judge.
    ``questions`` caps what is trained on; held-out questions are capped at the same number.
    """
    if questions is not None and questions < 20:
        raise InputError(f"questions={questions}: expected at least 20")
    judged_findings: Findings | None = None
    name = ", ".join(Path(path).name for path in data) or SHIPPED
    train, findings = read_training(data, questions, seed, skip_bad)
    if held_out or not data:
        judged, judged_findings = read_questions(held_out or heldout_path(), skip_bad=skip_bad)
    else:
        train, judged = split_by_passage(train, 0.1)
    if questions is not None:
        train, judged = train[:questions], judged[:questions]
    known = [question for question in train if question.golds is not None]
    if not known:
        raise InputError(f"{name}: none of the {len(train)} questions has a gold answer (or says that there is none)")
    fit, calibration = split_by_passage(known, min(0.02, 400 / len(known)))
    if not fit or not judged:
        raise InputError(
            f"{name}: {len(known)} questions are too few to hold some out; name a held-out file (--held-out)"
        )
    return Sources(name, fit, calibration or fit[-20:], judged, findings, judged_findings, overlap(fit, judged))


def read_training(
    data: Sequence[str | Path], questions: int | None, seed: int, skip_bad: bool
) -> tuple[list[Question], Findings]:
    """The questions of the files; without files, composed ones: 60,000 or as many as asked for."""
    if data:
        return read_questions(data, skip_bad=skip_bad)
    with tempfile.TemporaryDirectory(prefix="jieyue-") as folder:
        path = Path(folder) / "train.json"
        path.write_text(json.dumps(compose("train", seed, questions or 60_000)), encoding="utf-8")
        train, findings = read_questions(path)
    findings.encodings.clear()
    return train, findings


def split_by_passage(questions: Sequence[Question], share: float) -> tuple[list[Question], list[Question]]:
    """(rest, held out): all questions of a passage fall on one side, told by a checksum of its text; order is kept."""
    rest: list[Question] = []
    held: list[Question] = []
    for question in questions:
        checksum = zlib.crc32(question.passages[0].text.encode()) / 2**32
        (held if checksum < share else rest).append(question)
    return rest, held


def texts_of(questions: Iterable[Question]) -> list[str]:
    """Every question and every distinct passage, in order: what a vocabulary is learned from."""
    texts: dict[str, None] = {}
    for question in questions:
        texts[question.text] = None
        texts.update(dict.fromkeys(passage.text for passage in question.passages))
    return list(texts)
