"""Reading by a masked language model, one forward pass a window: section "MLM reading" of 7148.

Input ``[CLS] [MASK]·A [SEP] question [SEP] passage [SEP]``; the masks' softmax spells the answer and its closing [SEP].
A window without the answer has the target [SEP]: to abstain is learned. Decoding takes n-grams of the window only;
windows give their maximum, passages vote. Beyond the article: all n-grams are compared, not one greedy path.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy
import torch
from torch import Tensor, nn

from jieyue.data.batch import IGNORED, token_batch
from jieyue.data.qa_files import Question
from jieyue.data.windows import Candidate, Specials, Tokens
from jieyue.decoding.constraints import SEARCHES, Reading
from jieyue.decoding.slots import slot_logits, slot_probabilities
from jieyue.tally import Tally
from jieyue.tasks.batches import Done
from jieyue.training.objective import token_loss

from .reader import Answer, Orders, Reader, Window, answer_by_vote, target
from .settings import ReadSettings

if TYPE_CHECKING:
    from jieyue.hf.types import Tokenizer

__all__ = ["MASKED", "answer", "objective"]


def around(question: Tokens, special: Specials, settings: ReadSettings) -> tuple[numpy.ndarray, numpy.ndarray]:
    """``[CLS] [MASK]·A [SEP] question [SEP]`` before the window, ``[SEP]`` after it."""
    head = [special.cls, *[special.mask] * settings.answer_slots, special.sep]
    before = numpy.concatenate([head, question.ids[: settings.question_tokens - 1], [special.sep]])
    return before, numpy.array([special.sep])


def row(
    before: numpy.ndarray,
    ids: numpy.ndarray,
    after: numpy.ndarray,
    candidate: Candidate,
    special: Specials,
    settings: ReadSettings,
) -> dict[str, numpy.ndarray]:
    """``labels`` [A]: answer tokens, [SEP], then -100; they belong to the positions 1..A."""
    labels = numpy.full(settings.answer_slots, IGNORED, dtype=numpy.int32)
    wanted = target(candidate, special)
    labels[: len(wanted)] = wanted
    return {"input_ids": numpy.concatenate([before, ids, after]).astype(numpy.int32), "labels": labels}


def objective(model: nn.Module, batch: Mapping[str, Tensor]) -> Tally:
    """Sum of −log p over the answer tokens and their closing [SEP], and how many these are.

    ``batch``: ``input_ids``, ``attention_mask`` [B, L] and ``labels`` [B, A] of the slots at positions 1..A, where alone
    the vocabulary's logits are computed.
    """
    labels = batch["labels"]
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    return token_loss(slot_logits(model, inputs, 1, labels.shape[1]), labels)


def answer(
    model: nn.Module,
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    settings: ReadSettings,
    *,
    batch_size: int = 32,
    done: Done | None = None,
) -> list[Answer]:
    """See ``answer_by_vote``; one forward pass a batch, each row decoded on its own."""
    read = partial(_read, model, settings, Orders())
    return answer_by_vote(model, tokenizer, questions, settings, around, read, batch_size, done)


def _read(
    model: nn.Module, settings: ReadSettings, orders: Orders, batch: list[Window], inputs: dict[str, Tensor]
) -> list[Reading]:
    slots, search = settings.answer_slots, SEARCHES[settings.search or "best"]
    readings = []
    for one, own in zip(batch, slot_probabilities(model, inputs, 1, slots), strict=True):
        allowed = orders[one].window(one.first, one.stop)
        readings.append(search(allowed, own[:, one.inside], own[:, 1 + slots], one.first))
    return readings


def example(settings: ReadSettings, rows: int, positions: int) -> dict[str, Tensor]:
    """A batch of ``rows`` rows of ``positions`` tokens; its values mean nothing."""
    slots = max(1, min(settings.answer_slots, positions - 1))  # a plan asks about short rows too
    return token_batch(rows, positions) | {"labels": torch.zeros(rows, slots, dtype=torch.long)}


MASKED = Reader(
    around=around,
    row=row,
    objective=objective,
    answer=answer,
    example=example,
    way="one-shot masked decoding",
)
