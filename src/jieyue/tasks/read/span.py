"""Reading by a span head: where the answer starts and where it ends; [CLS] for both = there is none. As for SQuAD 2.0.

Input ``[CLS] question [SEP] passage [SEP]``, segments all 0 as the masked reader has them; two logits a position, each
a softmax over [CLS] and the window's tokens. All spans of at most ``answer_slots`` − 1 tokens are compared; windows give their
maximum, passages vote. Source: Devlin et al. 2018, "BERT" (arXiv 1810.04805), sections 4.2 and 4.3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy
import torch
from torch import Tensor, nn

from jieyue.data.batch import token_batch
from jieyue.data.qa_files import Question
from jieyue.data.windows import Candidate, Specials, Tokens
from jieyue.decoding.constraints import Reading
from jieyue.decoding.spans import best_span
from jieyue.hf.span import span_logits
from jieyue.tally import Tally
from jieyue.tasks.batches import Done
from jieyue.training.objective import token_loss

from .reader import Answer, Reader, Window, answer_by_vote
from .settings import ReadSettings

if TYPE_CHECKING:
    from jieyue.hf.types import Tokenizer

__all__ = ["SPAN", "answer", "objective"]


def around(question: Tokens, special: Specials, settings: ReadSettings) -> tuple[numpy.ndarray, numpy.ndarray]:
    """``[CLS] question [SEP]`` before the window, ``[SEP]`` after it."""
    before = numpy.concatenate([[special.cls], question.ids[: settings.question_tokens - 1], [special.sep]])
    return before, numpy.array([special.sep])


def row(
    before: numpy.ndarray,
    ids: numpy.ndarray,
    after: numpy.ndarray,
    candidate: Candidate,
    special: Specials,
    settings: ReadSettings,
) -> dict[str, numpy.ndarray]:
    """``labels`` [2]: the positions of the answer's first and last token, 0 and 0 where there is none; ``places`` [L]: 1 where
    an answer may start and end.
    """
    input_ids = numpy.concatenate([before, ids, after]).astype(numpy.int32)
    places = numpy.zeros(len(input_ids), dtype=numpy.int32)
    places[0] = places[len(before) : len(before) + len(ids)] = 1
    labels = numpy.zeros(2, dtype=numpy.int32)
    if len(candidate.answer):
        first = len(before) + candidate.start - candidate.first
        labels[:] = first, first + len(candidate.answer) - 1
    return {"input_ids": input_ids, "labels": labels, "places": places}


def objective(model: nn.Module, batch: Mapping[str, Tensor]) -> Tally:
    """Sum of −log p(start) − log p(end), and how many these are: two a row.

    ``batch``: ``input_ids``, ``attention_mask``, ``places`` [B, L], ``labels`` [B, 2]. Padding and the question take no part in
    the softmax, so a row's loss does not depend on the rows beside it.
    """
    inputs = {name: value for name, value in batch.items() if name not in ("labels", "places")}
    return token_loss(
        span_logits(model, inputs).masked_fill(batch["places"][:, None, :] == 0, -torch.inf), batch["labels"]
    )


def answer(
    model: nn.Module,
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    settings: ReadSettings,
    *,
    batch_size: int = 32,
    done: Done | None = None,
) -> list[Answer]:
    """See ``answer_by_vote``; one forward pass a batch, all spans of a window compared."""
    read = partial(_read, model, settings.answer_slots - 1)
    return answer_by_vote(model, tokenizer, questions, settings, around, read, batch_size, done)


def _read(model: nn.Module, longest: int, batch: list[Window], inputs: dict[str, Tensor]) -> list[Reading]:
    readings = []
    for one, own in zip(batch, span_logits(model, inputs).float().cpu().numpy(), strict=True):
        tokens = one.tokens.ids[one.first : one.stop]
        readings.append(best_span(tokens, own[:, one.inside], own[:, 0], longest, one.first))
    return readings


def example(settings: ReadSettings, rows: int, positions: int) -> dict[str, Tensor]:
    """A batch of ``rows`` rows of ``positions`` tokens; its values mean nothing."""
    batch = token_batch(rows, positions)
    return batch | {
        "labels": torch.zeros(rows, 2, dtype=torch.long),
        "places": torch.ones_like(batch["input_ids"]),
    }


SPAN = Reader(
    around=around,
    row=row,
    objective=objective,
    answer=answer,
    example=example,
    way="one forward pass, all spans compared",
)
