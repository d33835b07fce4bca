"""Rows of sources and titles, the objective on them, and the search that writes.

    prefix           [CLS] source [SEP] title [SEP], the source bidirectional, the title causal (UniLM): the article's model
    causal           the same row for a causal language model; a tokenizer without [CLS] begins with what it has, or nothing
    encoder-decoder  [CLS] source [SEP]  ->  title [SEP]

The loss is on the title and its closing token. Titles are written by beam search that keeps finished hypotheses.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy
import torch
from torch import Tensor, nn

from jieyue.data.batch import IGNORED, collate, pad_of
from jieyue.data.titles import Pair
from jieyue.decoding.search import beam, greedy
from jieyue.errors import InputError
from jieyue.hf.steps import steps
from jieyue.tally import Tally
from jieyue.tasks import Row
from jieyue.tasks.batches import Done, answers_in_batches
from jieyue.text import join_pieces
from jieyue.training.objective import token_loss
from jieyue.training.vocabulary_loss import model_vocabulary_loss

from .settings import TitleSettings

if TYPE_CHECKING:
    from jieyue.hf.types import Tokenizer

__all__ = ["Title", "collate_titles", "decoder_loss", "encode_pairs", "marks", "prompts", "title_loss", "write_titles"]


def marks(tokenizer: Tokenizer) -> tuple[list[int], int]:
    """What a row begins with ([CLS], <s>, or nothing), and the token that closes source and title ([SEP], </s>)."""
    first = tokenizer.cls_token_id if tokenizer.cls_token_id is not None else tokenizer.bos_token_id
    last = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
    if last is None or tokenizer.pad_token_id is None:
        raise InputError("tokenizer", f"{type(tokenizer).__name__} without an end or padding", "[SEP] or eos, and pad")
    return ([] if first is None else [int(first)]), int(last)


def prompts(sources: Sequence[str], tokenizer: Tokenizer, settings: TitleSettings) -> tuple[list[list[int]], int]:
    """What stands before each title, and how many sources were cut."""
    first, last = marks(tokenizer)
    most = settings.source_tokens - 1
    ids = _ids(tokenizer, sources)
    return [[*first, *own[:most], last] for own in ids], sum(len(own) > most for own in ids)


def encode_pairs(
    pairs: Sequence[Pair], tokenizer: Tokenizer, settings: TitleSettings
) -> tuple[list[Row], Counter[str]]:
    """Training rows and what was counted. A row: ``input_ids`` and ``labels`` [L] (-100 on the source), and for a prefix LM
    ``token_type_ids`` (0 source, 1 title); for an encoder-decoder ``labels`` are the title alone.
    """
    _, last = marks(tokenizer)
    counts = Counter[str]()
    before, counts["sources_truncated"] = prompts([one.source for one in pairs], tokenizer, settings)
    most = settings.title_tokens - 1
    rows: list[Row] = []
    for number, (prompt, title) in enumerate(zip(before, _ids(tokenizer, [one.title for one in pairs]), strict=True)):
        over_long = len(title) > most
        counts["titles_over_long"] += over_long
        counts["longest_title_tokens"] = max(counts["longest_title_tokens"], len(title) + 1)
        if over_long and settings.over_long == "refuse":
            raise InputError(f"pair {number + 1}", f"a title of {len(title) + 1} tokens", f"at most {settings.title_tokens}",
                    "raise title_tokens, or choose over_long=cut or skip (--over-long)")  # fmt: skip
        if not title or (over_long and settings.over_long == "skip"):
            counts["titles_left_out"] += 1
            continue
        target = title[: settings.title_tokens] if over_long else [*title, last]
        rows.append(_row(prompt, target, settings.kind))
        counts["tokens"] += len(prompt) + len(target)
        counts["longest_row_tokens"] = max(counts["longest_row_tokens"], len(prompt) + len(target))
        if tokenizer.unk_token_id is not None:
            counts["unknown_tokens"] += (*prompt, *target).count(tokenizer.unk_token_id)
    counts["rows"] = len(rows)
    return rows, counts


def _row(prompt: list[int], target: list[int], kind: str) -> dict[str, numpy.ndarray]:
    if kind == "encoder-decoder":
        return {"input_ids": numpy.array(prompt, numpy.int32), "labels": numpy.array(target, numpy.int32)}
    row = {
        "input_ids": numpy.array([*prompt, *target], numpy.int32),
        "labels": numpy.array([*[IGNORED] * len(prompt), *target], numpy.int32),
    }
    if kind == "prefix":
        row["token_type_ids"] = numpy.array([0] * len(prompt) + [1] * len(target), numpy.int32)
    return row


def collate_titles(rows: Sequence[Row], tokenizer: Tokenizer, settings: TitleSettings) -> dict[str, Tensor]:
    """Rows as tensors; labels of an encoder-decoder never have the source's width, so that its padding is cut alone."""
    batch = collate(rows, pad_of(tokenizer))
    if settings.kind == "encoder-decoder" and batch["labels"].shape[1] == batch["input_ids"].shape[1]:
        batch["labels"] = torch.nn.functional.pad(batch["labels"], (0, 1), value=IGNORED)
    return batch


def title_loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tally:
    """Sum of −log p over the title's tokens and its closing one, and how many these are; the logits are never whole."""
    labels = batch["labels"]
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    return model_vocabulary_loss(model, {**inputs, "use_cache": False}, labels, shift=True)


def decoder_loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tally:
    """The same of an encoder-decoder, whose titles stand alone in ``labels``."""
    labels = batch["labels"]
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    if "decoder_input_ids" not in inputs:
        shifted = getattr(model, "prepare_decoder_input_ids_from_labels")  # noqa: B009
        inputs["decoder_input_ids"] = shifted(labels=labels)
    return token_loss(model(**inputs, use_cache=False).logits, labels)


@dataclass(frozen=True, slots=True)
class Title:
    """A written title; ``log_probability`` of its tokens and their end, ``finished``: it ended before ``title_tokens``;
    ``tokens`` without the closing one."""

    text: str
    log_probability: float
    finished: bool
    tokens: tuple[int, ...] = ()


def write_titles(
    model: nn.Module,
    tokenizer: Tokenizer,
    sources: Sequence[str],
    settings: TitleSettings,
    *,
    batch_size: int = 32,
    done: Done | None = None,
) -> list[Title]:
    """A title for every source, in order; sources of like length are written together."""
    _, last = marks(tokenizer)
    before, _ = prompts(sources, tokenizer, settings)
    pad, most = pad_of(tokenizer), settings.title_tokens

    def collated(rows: list[list[int]]) -> dict[str, Tensor]:
        ids, mask = _padded(rows, pad, settings.kind)
        return {"ids": ids, "mask": mask}

    def read(_: list[list[int]], batch: dict[str, Tensor]) -> list[Title]:
        ids, mask, step = batch["ids"], batch["mask"], steps(model)
        if settings.beams == 1:
            best = greedy(step, ids, mask, stop=[last], max_tokens=most, min_tokens=1)
        else:
            width, penalty = settings.beams, settings.length_penalty
            found = beam(
                step, ids, mask, width=width, length_penalty=penalty, stop=[last], max_tokens=most, min_tokens=1
            )
            best = [own[0] for own in found]
        return [
            Title(
                join_pieces(str(tokenizer.decode(list(one.tokens), skip_special_tokens=True))),
                one.log_probability,
                one.finished,
                one.tokens,
            )
            for one in best
        ]

    return answers_in_batches(model, before, len, collated, read, batch_size=batch_size, done=done)


def _ids(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Tokens of each text without special ones; marks like ``[SEP]`` in a text stay text."""
    if not texts:
        return []
    options = {"return_attention_mask": False, "return_token_type_ids": False, "verbose": False}
    found = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True, **options)["input_ids"]
    return [list(map(int, own)) for own in found]


def _padded(rows: Sequence[list[int]], pad: int, kind: str) -> tuple[Tensor, Tensor]:
    """Prompts as tensors: padded on the left, as what is written follows them; on the right for an encoder."""
    width = max(map(len, rows))
    left = kind != "encoder-decoder"
    spaces = [[pad] * (width - len(row)) for row in rows]
    ids = torch.tensor([space + row if left else row + space for space, row in zip(spaces, rows, strict=True)])
    kept = [[0] * len(space) + [1] * len(row) if left else [1] * len(row) + [0] * len(space)
            for space, row in zip(spaces, rows, strict=True)]  # fmt: skip
    return ids, torch.tensor(kept)
