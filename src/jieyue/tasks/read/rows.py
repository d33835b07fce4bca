"""Training rows of a reader: windows with the answer, and some without."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy

from jieyue.data.candidates import candidates
from jieyue.data.qa_files import Question
from jieyue.data.windows import specials, tokenize
from jieyue.tasks import Row

from .reader import Reader
from .settings import ReadSettings

if TYPE_CHECKING:
    from jieyue.hf.types import Tokenizer

__all__ = ["encode_questions"]


def encode_questions(
    questions: Sequence[Question], tokenizer: Tokenizer, settings: ReadSettings, reader: Reader
) -> tuple[list[Row], Counter[str]]:
    """Training rows and what became of everything that gave none.

    A row: ``input_ids`` [L], ``labels`` and what else the reader's objective asks for, and ``question``, ``passage``: where it
    comes from. Targets are the passage's own tokens that cover the answer. Questions whose answers are not known give no row.
    Deterministic in ``settings.seed``.
    """
    special, counts = specials(tokenizer), Counter[str]()
    asked = tokenize(tokenizer, [question.text for question in questions])
    texts = [passage.text for question in questions for passage in question.passages]
    passages = iter(tokenize(tokenizer, texts))
    unknown_id = tokenizer.unk_token_id
    generator = numpy.random.default_rng(settings.seed)
    rows: list[Row] = []
    for number, (question, own) in enumerate(zip(questions, asked, strict=True)):
        tokens = [next(passages) for _ in question.passages]
        counts["questions_truncated"] += len(own.ids) > settings.question_tokens - 1
        if question.golds is None:
            counts["questions_without_golds"] += 1
            continue
        answered, empty = candidates(
            question, tokens, settings.window_tokens - 1, settings.overlap_tokens, settings.answer_slots - 1, counts
        )
        counts["questions_not_trained"] += not answered and not empty
        positives = len(answered) if question.golds else 1
        allowed = max(round(settings.negatives_per_positive * positives), int(not question.golds))
        if len(empty) > allowed:
            counts["windows_left_out"] += len(empty) - allowed
            empty = [empty[at] for at in sorted(generator.permutation(len(empty))[:allowed])]
        before, after = reader.around(own, special, settings)
        for candidate in (*answered, *empty):
            ids = tokens[candidate.passage].ids[candidate.first : candidate.stop]
            row = reader.row(before, ids, after, candidate, special, settings)
            rows.append(row | {"question": number, "passage": candidate.passage})
            if unknown_id is not None:
                counts["unknown_tokens"] += int((row["input_ids"] == unknown_id).sum())
            counts["tokens"] += len(row["input_ids"])
            counts["longest_row_tokens"] = max(counts["longest_row_tokens"], len(row["input_ids"]))
        counts["rows_answered"] += len(answered)
        counts["rows_abstaining"] += len(empty)
    counts["rows"] = len(rows)
    return rows, counts
