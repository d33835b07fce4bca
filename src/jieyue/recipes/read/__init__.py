"""Reading comprehension: a question, one or more passages, an answer that is a slice of them or none. Three readers.

  masked    one forward pass, the [MASK]s spell the answer (7148): masked.py
  span      one forward pass, where the answer starts and ends; [CLS] = none: span.py
  prefix    the answer is written token by token, all passages together, with a cache (7115): prefix.py

They share data, windows, targets, scores and calibration. One reader = one value (``reader.Reader``).

  data      SQuAD 1.1 and 2.0, CMRC 2018, DRCD, multi-passage (WebQA, SogouQA): data/readers.py
  command   jieyue train read [--reader masked|span|prefix], jieyue evaluate, jieyue read
  cost      encoding about 2 µs a token; masked and span one forward pass a window, prefix one short one more a token
  score     exact match, F1 and their mean; SQuAD's rule, CMRC 2018's where there is CJK text
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy
from torch import Tensor

from jieyue.data.candidates import candidates
from jieyue.data.qa_files import Question, read_questions
from jieyue.data.windows import specials, tokenize
from jieyue.recipes import Recipe

from .masked import MASKED, objective
from .prefix import PREFIX
from .reader import Answer, Reader
from .scores import against_baselines, calibrate, score
from .settings import HEADS, ReadSettings
from .span import SPAN

__all__ = [
    "HEADS",
    "READERS",
    "RECIPE",
    "Answer",
    "ReadSettings",
    "Reader",
    "against_baselines",
    "answer",
    "calibrate",
    "encode",
    "objective",
    "score",
]

READERS = {"masked": MASKED, "span": SPAN, "prefix": PREFIX}


def encode(
    questions: Sequence[Question], tokenizer: Any, settings: ReadSettings
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Training rows and what became of everything that gave none.

    A row: ``input_ids`` [L], ``labels`` and what else the reader's objective asks for, and ``question``, ``passage``: where it
    comes from. Targets are the passage's own tokens that cover the answer. Questions whose answers are not known give no row.
    Deterministic in ``settings.seed``.
    """
    special, counts = specials(tokenizer), Counter[str]()
    reader = READERS[settings.reader]
    asked = tokenize(tokenizer, [question.text for question in questions])
    texts = [passage.text for question in questions for passage in question.passages]
    passages = iter(tokenize(tokenizer, texts))
    unknown_id = getattr(tokenizer, "unk_token_id", None)
    generator = numpy.random.default_rng(settings.seed)
    rows: list[dict[str, Any]] = []
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


def answer(
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    settings: ReadSettings,
    *,
    batch_size: int = 32,
    progress: Callable[[int, int], None] | None = None,
) -> list[Answer]:
    """An answer to every question, in order; ``batch_size`` counts windows, sorted by length so that little is padding.

    ``progress(done, windows)`` is called after every batch. The model is put into evaluation mode and back.
    """
    return READERS[settings.reader].answer(
        model, tokenizer, questions, settings, batch_size=batch_size, progress=progress
    )


def example(settings: ReadSettings, rows: int, positions: int) -> dict[str, Tensor]:
    """A batch of ``rows`` rows of ``positions`` tokens; its values mean nothing."""
    return READERS[settings.reader].example(settings, rows, positions)


RECIPE = Recipe(
    name="read",
    head="masked-lm",
    settings=ReadSettings,
    read=read_questions,
    encode=encode,
    objective=objective,
    answer=answer,
    score=score,
    example=example,
    objective_of=lambda settings: READERS[settings.reader].objective,
)
