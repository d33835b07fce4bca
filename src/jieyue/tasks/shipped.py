"""The corpus that ships, as several tasks take it: composed questions, and passages with their topics."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from jieyue.data.corpora import compose, heldout_path
from jieyue.data.findings import Findings
from jieyue.data.labelled import Labelled
from jieyue.data.qa_files import Question, read_questions

__all__ = ["questions", "topics"]


def questions(count: int, seed: int = 0) -> tuple[list[Question], Findings]:
    """So many training questions, composed anew by the seed."""
    with tempfile.TemporaryDirectory(prefix="jieyue-") as folder:
        path = Path(folder) / "train.json"
        path.write_text(json.dumps(compose("train", seed, count)), encoding="utf-8")
        found, findings = read_questions(path)
    findings.encodings.clear()
    return found, findings


def topics(count: int | None = None, most: int | None = None) -> list[Labelled]:
    """Every distinct passage with its topic: of the training part (of at most ``most`` questions), or of the held-out one."""
    asked = read_questions(heldout_path())[0] if most is None else questions(min(most, count or most))[0]
    found: dict[str, Labelled] = {}
    for question in asked:
        for passage in question.passages:
            found.setdefault(passage.text, Labelled(passage.text, question.topic or None))
    return list(found.values())
