"""The curriculum of reading: stages of growing passages, cut around the answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random

from jieyue.data.curriculum import Curriculum, crop
from jieyue.data.qa_files import Question

__all__ = ["PRESET_CURRICULUM", "cropped", "stages_of"]

PRESET_CURRICULUM = "1:0.22,2:0.42"


def cropped(questions: Sequence[Question], num_sentences: int, seed: int) -> list[Question]:
    """The same questions about passages of at most ``num_sentences`` neighbouring sentences, the answer's among them."""
    random = Random(f"cropped {num_sentences} {seed}")
    found = []
    for question in questions:
        passages = []
        for passage in question.passages:
            text, spans = crop(passage.text, passage.spans, num_sentences, random)
            passages.append(replace(passage, text=text, spans=spans))
        found.append(replace(question, passages=tuple(passages)))
    return found


def stages_of(curriculum: Curriculum, questions: Sequence[Question], seed: int) -> list[tuple[float, list[Question]]]:
    """(share of the updates at which it ends, its questions) for each stage; the last has all questions, uncut.

    A stage draws from no more questions than its share could show in one pass.
    """
    stages, before = [], 0.0
    for count, until in curriculum.stages:
        chosen = list(questions)
        Random(f"stage {count} {seed}").shuffle(chosen)
        stages.append(
            (until, cropped(chosen[: max(1, round(len(chosen) * min(1.0, 2 * (until - before))))], count, seed))
        )
        before = until
    return [*stages, (1.0, list(questions))] if before < 1 else stages
