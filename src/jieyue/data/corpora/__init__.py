"""The corpus that ships: Chinese and English notices, profiles, timetables, recipes and short news, with questions.

``compose`` writes any amount of it from hand-written sentence patterns, names and facts (CARD.md says how);
``heldout_path`` is the held-out part as a file: other people, places and things, and sentence patterns, than in training.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from random import Random

from jieyue.errors import InputError
from jieyue.json_values import Facts

from .passages import Passage, compose_passage
from .patterns import LANGUAGES, Topic, read_topics

__all__ = ["HELDOUT_QUESTIONS", "HELDOUT_SEED", "compose", "heldout_path", "write"]

HELDOUT_SEED = 7148
HELDOUT_QUESTIONS = 1500
UNANSWERABLE = 0.15


def heldout_path() -> Path:
    """The held-out part that ships: SQuAD 2.0 JSON, ``compose("heldout", HELDOUT_SEED, HELDOUT_QUESTIONS)``."""
    return Path(__file__).parent / "heldout.json"


def _record(passage: Passage, topic: Topic, name: str) -> Facts:
    questions = [
        {
            "id": f"{name}-{number}",
            "question": question.text,
            "answers": [{"text": question.answer, "answer_start": question.start}] if question.answer else [],
            "is_impossible": not question.answer,
            "pattern": question.pattern,
        }
        for number, question in enumerate(passage.questions)
    ]
    paragraph = {"context": passage.context, "difficulty": passage.num_sentences, "qas": questions}
    return {"title": passage.title, "topic": topic.name, "language": topic.language, "paragraphs": [paragraph]}


def compose(
    split: str = "train",
    seed: int = 0,
    num_questions: int = 60_000,
    *,
    languages: tuple[str, ...] = LANGUAGES,
    unanswerable: float = UNANSWERABLE,
) -> Facts:
    """A corpus of exactly ``num_questions`` questions in SQuAD 2.0 shape, languages and topics in turn.

    ``split`` is "train" or "heldout"; the two share no person, place, organisation, work or dish, and a fifth of the
    sentence patterns stand in held-out text alone. Every entry has one paragraph and, beyond SQuAD, ``title``,
    ``topic``, ``language``; a paragraph has ``difficulty`` (its number of sentences), a question its ``pattern``.
    The same arguments give the same corpus on every machine. Cost: about 20,000 questions a second.
    """
    if split not in ("train", "heldout"):
        raise InputError(f"split={split!r}: expected 'train' or 'heldout'")
    if num_questions < 1:
        raise InputError(f"num_questions={num_questions}: expected at least 1")
    if not languages or not set(languages) <= set(LANGUAGES):
        raise InputError(f"languages={languages!r}: expected some of {LANGUAGES}")
    if not 0 <= unanswerable <= 1:
        raise InputError(f"unanswerable={unanswerable}: expected a share between 0 and 1")
    random = Random(f"{split} {seed}")
    topics = [topic for pair in zip(*map(read_topics, languages), strict=False) for topic in pair]
    data: list[Facts] = []
    seen: set[str] = set()
    missing, turn = num_questions, 0
    while missing:
        topic = topics[turn % len(topics)]
        turn += 1
        most = min(random.choice((2, 3, 4)), missing)
        try:
            passage = compose_passage(
                topic, heldout=split == "heldout", unanswerable=unanswerable, most=most, random=random
            )
        except LookupError:
            continue  # too many values of one kind: draw again
        if passage.questions and passage.context not in seen:
            seen.add(passage.context)
            data.append(_record(passage, topic, f"{split}-{topic.language}-{len(data):05d}"))
            missing -= len(passage.questions)
    return {"version": f"jieyue-{split}-{seed}", "data": data}


def write(folder: str | Path, seed: int = 0, num_questions: int = 60_000) -> tuple[Path, Path]:
    """Writes ``train.json`` (composed) and ``heldout.json`` (the shipped file) into a folder; returns their paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "train.json": json.dumps(compose("train", seed, num_questions), ensure_ascii=False, indent=0),
        "heldout.json": heldout_path().read_text(encoding="utf-8"),
    }
    for name, text in texts.items():
        part = folder / f".{name}.part"
        part.write_text(text, encoding="utf-8", newline="\n")
        os.replace(part, folder / name)
    return folder / "train.json", folder / "heldout.json"
