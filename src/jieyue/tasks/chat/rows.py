"""Dialogues as rows of tokens, every turn learned in one pass: section "DialoGPT-like multi-turn chit-chat", 7718.

Input ``[CLS] u1 [SEP] u2 [SEP] …`` (or the model's own chat template); every position is asked for the next token, so n
replies need one row, not n. Short dialogues share rows without seeing one another (presets). What is too long loses whole
oldest turns, by the same code that serves (data/history.py). Tokens lie in files and are mapped.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy
import torch
from torch import Tensor, nn

from jieyue import __version__
from jieyue.data.dialogues import Dialogue, digest_of
from jieyue.data.history import encode_talks, fit_history, template_for
from jieyue.data.mapped import ANY_TURN, LAST_TURN, REPLY, keep_tokens, temporary_tokens
from jieyue.data.packing import LOSS_ON, DialogueRows
from jieyue.errors import InputError
from jieyue.hf.attention import attention_of
from jieyue.tally import Tally
from jieyue.training.vocabulary_loss import model_vocabulary_loss

from .settings import ChatSettings

if TYPE_CHECKING:
    from jieyue.hf.types import Tokenizer

__all__ = ["dialogue_loss", "encode_dialogues", "tokenised"]

_TOGETHER = 256  # dialogues that are tokenised at once


def encode_dialogues(
    dialogues: Sequence[Dialogue], tokenizer: Tokenizer, settings: ChatSettings, folder: Path | None = None
) -> tuple[DialogueRows, Counter[str]]:
    """Training rows over tokens in files: in ``folder``, where they are found again, or in temporary ones that go with the rows.

    A row: ``input_ids``, ``labels`` (the next token where it is asked for, else -100) and, packed, ``position_ids``.
    Memory: a few hundred dialogues, whatever their number. The counts say what was dropped and cut. Tokens in ``folder`` that
    were made from other dialogues, by another tokenizer or for other settings are made anew.
    """
    counts, is_known = Counter[str](), False
    made = tokenised(dialogues, tokenizer, settings, counts)
    if folder is None:
        tokens = temporary_tokens(made, {})
    else:
        tokens, is_known = keep_tokens(folder, _digest(dialogues, tokenizer, settings), made, counts)
        counts = Counter(tokens.counts["counts"])
    rows = DialogueRows(tokens, settings.loss_on, settings.row_tokens)
    counts["rows"] = len(rows)
    counts["rows_found_again"] = len(rows) * is_known
    counts["tokens"] = int(tokens.lengths.sum())
    counts["longest_row_tokens"] = int(rows.lengths.max()) if len(rows) else 0
    return rows, counts


def _digest(dialogues: Sequence[Dialogue], tokenizer: Tokenizer, settings: ChatSettings) -> str:
    """Identifies what tokens are made from: the dialogues, the tokenizer with its template, settings, our version."""
    inner = json.loads(tokenizer.backend_tokenizer.to_str()) if tokenizer.is_fast else None
    if inner is not None:
        inner |= {"truncation": None, "padding": None}  # what calls set for themselves
    own = [inner, template_for(tokenizer), tokenizer.special_tokens_map]
    said = [digest_of(dialogues), own, settings.max_tokens, settings.loss_on, __version__]
    return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()[:16]


def tokenised(
    dialogues: Sequence[Dialogue], tokenizer: Tokenizer, settings: ChatSettings, counts: Counter[str]
) -> Iterator[tuple[numpy.ndarray, numpy.ndarray]]:
    """(ids, marks) of each dialogue that has something to learn."""
    unknown = tokenizer.unk_token_id
    remaining = iter(dialogues)
    while some := list(islice(remaining, _TOGETHER)):
        for messages, talk in zip(some, encode_talks(tokenizer, some), strict=True):
            ids, turns = talk.ids, talk.turns
            if len(ids) > settings.max_tokens:
                ids, turns, messages = _shortened(messages, tokenizer, settings.max_tokens, counts)
            marks = numpy.zeros(len(ids), numpy.uint8)
            last, is_asked = len(messages) - 1, False
            for number, ((first, stop), one) in enumerate(zip(turns, messages, strict=True)):
                if not one.learned:
                    continue
                mark = ANY_TURN | (REPLY if one.role == "assistant" else 0) | (LAST_TURN if number == last else 0)
                marks[first:stop] = mark
                is_asked |= bool(mark & LOSS_ON[settings.loss_on]) and stop > max(first, 1)
            if not is_asked:
                counts["dialogues_without_loss"] += 1
                continue
            if unknown is not None:
                counts["unknown_tokens"] += int(numpy.count_nonzero(ids == unknown))
            yield ids, marks


def _shortened(
    messages: Dialogue, tokenizer: Tokenizer, most: int, counts: Counter[str]
) -> tuple[numpy.ndarray, tuple[tuple[int, int], ...], Dialogue]:
    """A dialogue without its oldest turns; a single turn that is too long is cut."""
    counts["dialogues_shortened"] += 1
    try:
        kept = fit_history(tokenizer, messages, most, reply=False).messages
    except InputError:
        counts["turns_cut"] += 1
        kept = messages[-1:]
    counts["turns_dropped"] += len(messages) - len(kept)
    (talk,) = encode_talks(tokenizer, [kept])
    return talk.ids[:most], tuple((min(a, most), min(b, most)) for a, b in talk.turns), tuple(kept)


def dialogue_loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tally:
    """Sum of −log p over the tokens that are asked for, and how many these are; the logits are never whole.

    ``batch``: ``input_ids``, ``labels`` [B, L] (already shifted) and ``attention_mask``, or ``position_ids`` that start
    again at every dialogue: then none sees another. A pattern of ours reads that from the positions; other attentions get a mask.
    """
    inputs: dict[str, Tensor | bool] = {"input_ids": batch["input_ids"], "use_cache": False}
    if "position_ids" in batch:
        inputs["position_ids"] = batch["position_ids"]
        if not attention_of(model):
            inputs["attention_mask"] = _apart(batch["position_ids"], model)
    elif "attention_mask" in batch:
        inputs["attention_mask"] = batch["attention_mask"]
    return model_vocabulary_loss(model, inputs, batch["labels"])


def _apart(positions: Tensor, model: nn.Module) -> Tensor:
    """What each position may see [B, 1, L, L]: itself and what came before in its own dialogue; added to the scores."""
    dialogue = (positions == 0).cumsum(1)
    seen = (dialogue[:, :, None] == dialogue[:, None, :]).tril()
    dtype = next(model.parameters()).dtype
    return torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)[:, None]
