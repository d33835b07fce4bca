"""A trained reader that is asked: the folder is opened once, each answer is plain values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from jieyue.data.qa_files import Passage, Question
from jieyue.errors import InputError
from jieyue.hf.loading import load
from jieyue.json_values import Facts
from jieyue.record import read_record

from .settings import ReadSettings
from .task import TASK

__all__ = ["open_reader", "read"]

Ask = Callable[[str, Sequence[str]], Facts]


def open_reader(folder: str | Path) -> Ask:
    """``ask(question, passages)`` of the reader in ``folder``, of whichever kind it was trained as; see ``read``."""
    settings = ReadSettings.from_dict(read_record(folder, "read")["settings"])
    model, tokenizer = load(folder, settings.head("masked-lm"))

    def ask(question: str, passages: Sequence[str]) -> Facts:
        if not question.strip():
            raise InputError("question: found nothing, expected a question")
        if not any(text.strip() for text in passages):
            raise InputError("passage: found nothing, expected a text to look for the answer in")
        kept = [number for number, text in enumerate(passages) if text.strip()]
        asked = Question("1", question, tuple(Passage(passages[number]) for number in kept))
        (found,) = TASK.answer(model, tokenizer, [asked], settings)
        return {
            "answer": found.text,
            "passage": kept[found.passage] if found.text else -1,
            "start": found.start,
            "end": found.end,
            "confidence": round(found.confidence, 4),
            "vote": round(found.vote, 4),
            "rivals": [{"answer": text, "vote": round(vote, 4)} for text, vote in found.rivals],
        }

    return ask


def read(folder: str | Path, question: str, passages: Sequence[str]) -> Facts:
    """One question about some passages, answered by a trained reader.

    ``answer`` is a slice of ``passages[passage]``, letter for letter, ``start:end`` in characters; empty when the reader
    finds no answer. ``confidence`` is calibrated; ``rivals`` are other answers with their votes.
    """
    return open_reader(folder)(question, passages)
