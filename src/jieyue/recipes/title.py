"""From a text to its title: a prefix language model over a masked LM (section "exposure bias" of 7259), or other writers.

    prefix           [CLS] source [SEP] title [SEP], the source bidirectional, the title causal (UniLM): the article's model
    causal           the same row for a causal language model; a tokenizer without [CLS] begins with what it has, or nothing
    encoder-decoder  [CLS] source [SEP]  ->  title [SEP]

The loss is on the title and its closing token. Titles are written by beam search that keeps finished hypotheses.

  data      TSV, CSV, JSON lines with a source and a title (CSL, LCSTS): data/titles.py
  command   jieyue train title, jieyue evaluate, jieyue title
  cost      training one pass a row; writing one step a token for all hypotheses of a batch
  score     ROUGE-1/2/L by characters and words, sentence BLEU as in the article, corpus BLEU, Dist-n, repetition
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy
import torch
from torch import Tensor

from jieyue.data.batch import IGNORED, collate, token_batch
from jieyue.data.findings import Findings
from jieyue.data.titles import Pair, read_titles
from jieyue.decoding.search import beam, greedy
from jieyue.errors import InputError, message
from jieyue.hf.steps import steps
from jieyue.metrics import generation
from jieyue.metrics.intervals import bootstrap
from jieyue.tally import Tally
from jieyue.text import join_pieces
from jieyue.training.objective import token_loss
from jieyue.training.vocabulary_loss import model_vocabulary_loss

from . import Recipe, Settings

__all__ = [
    "KINDS",
    "RECIPE",
    "Title",
    "TitleSettings",
    "answer",
    "encode",
    "marks",
    "objective",
    "prompts",
    "read",
    "score",
]

Kind = Literal["prefix", "causal", "encoder-decoder"]
KINDS: dict[str, str] = {"prefix": "prefix", "causal": "causal-lm", "encoder-decoder": "sequence-to-sequence"}
"""The kinds of writers, and the head of ``hf.loading.HEADS`` that each has."""
_OVER_LONG = ("cut", "skip", "refuse")


@dataclass(frozen=True, kw_only=True)
class TitleSettings(Settings):
    """Lengths in tokens, each with its closing token; the article's.

    ``over_long``: what becomes of a title longer than ``title_tokens``: "cut" (its end is not learned), "skip" or "refuse".
    ``beams`` 1 = greedy; ``length_penalty`` 0 = the most probable title. ``source_column`` and ``title_column``: names or numbers.
    """

    kind: Kind = "prefix"
    source_tokens: int = 224
    title_tokens: int = 32
    over_long: Literal["cut", "skip", "refuse"] = "cut"
    beams: int = 3
    length_penalty: float = 0.0
    source_column: str | None = None
    title_column: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS or self.over_long not in _OVER_LONG:
            raise InputError(
                f"kind={self.kind!r}, over_long={self.over_long!r}: expected one of {', '.join(KINDS)}, and of "
                f"{', '.join(_OVER_LONG)}"
            )
        for name, least in (("source_tokens", 2), ("title_tokens", 2), ("beams", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name}={getattr(self, name)}: expected at least {least}")

    def head(self, default: str) -> str:
        return KINDS[self.kind]

    def fitted(self, positions: int) -> Self:
        """A shorter source where the model has fewer positions."""
        needed = 1 + (self.source_tokens if self.kind == "encoder-decoder" else self.source_tokens + self.title_tokens)
        if needed <= positions:
            return self
        source = self.source_tokens - (needed - positions)
        if source < self.title_tokens:
            found = f"a model of {positions} positions"
            raise InputError(
                message(f"source_tokens={self.source_tokens}", found, f"at least {needed}", "lower title_tokens")
            )
        return replace(self, source_tokens=source)


def read(
    paths: str | Path | Sequence[str | Path], *, skip_bad: bool = False, settings: TitleSettings = TitleSettings()
) -> tuple[list[Pair], Findings]:
    """Pairs of the files and what was found: ``data.titles.read_titles``."""
    return read_titles(
        paths, source_column=settings.source_column, title_column=settings.title_column, skip_bad=skip_bad
    )


def marks(tokenizer: Any) -> tuple[list[int], int]:
    """What a row begins with ([CLS], <s>, or nothing), and the token that closes source and title ([SEP], </s>)."""
    first = tokenizer.cls_token_id if tokenizer.cls_token_id is not None else tokenizer.bos_token_id
    last = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
    if last is None or tokenizer.pad_token_id is None:
        raise InputError(
            message("tokenizer", f"{type(tokenizer).__name__} without an end or padding", "[SEP] or eos, and pad")
        )
    return ([] if first is None else [int(first)]), int(last)


def prompts(sources: Sequence[str], tokenizer: Any, settings: TitleSettings) -> tuple[list[list[int]], int]:
    """What stands before each title, and how many sources were cut."""
    first, last = marks(tokenizer)
    most = settings.source_tokens - 1
    ids = _ids(tokenizer, sources)
    return [[*first, *own[:most], last] for own in ids], sum(len(own) > most for own in ids)


def encode(pairs: Sequence[Pair], tokenizer: Any, settings: TitleSettings) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Training rows and what was counted. A row: ``input_ids`` and ``labels`` [L] (-100 on the source), and for a prefix LM
    ``token_type_ids`` (0 source, 1 title); for an encoder-decoder ``labels`` are the title alone.
    """
    _, last = marks(tokenizer)
    counts = Counter[str]()
    before, counts["sources_truncated"] = prompts([one.source for one in pairs], tokenizer, settings)
    most = settings.title_tokens - 1
    rows: list[dict[str, Any]] = []
    for number, (prompt, title) in enumerate(zip(before, _ids(tokenizer, [one.title for one in pairs]), strict=True)):
        over_long = len(title) > most
        counts["titles_over_long"] += over_long
        counts["longest_title_tokens"] = max(counts["longest_title_tokens"], len(title) + 1)
        if over_long and settings.over_long == "refuse":
            raise InputError(
                message(
                    f"pair {number + 1}", f"a title of {len(title) + 1} tokens", f"at most {settings.title_tokens}",
                    "raise title_tokens, or choose over_long=cut or skip (--over-long)",
                )
            )  # fmt: skip
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


def _row(prompt: list[int], target: list[int], kind: str) -> dict[str, Any]:
    if kind == "encoder-decoder":
        return {"input_ids": numpy.array(prompt, numpy.int32), "labels": numpy.array(target, numpy.int32)}
    row = {
        "input_ids": numpy.array([*prompt, *target], numpy.int32),
        "labels": numpy.array([*[IGNORED] * len(prompt), *target], numpy.int32),
    }
    if kind == "prefix":
        row["token_type_ids"] = numpy.array([0] * len(prompt) + [1] * len(target), numpy.int32)
    return row


def collate_titles(rows: Sequence[Mapping[str, Any]], tokenizer: Any, settings: TitleSettings) -> dict[str, Tensor]:
    """Rows as tensors; labels of an encoder-decoder never have the source's width, so that its padding is cut alone."""
    batch = collate(rows, tokenizer.pad_token_id)
    if settings.kind == "encoder-decoder" and batch["labels"].shape[1] == batch["input_ids"].shape[1]:
        batch["labels"] = torch.nn.functional.pad(batch["labels"], (0, 1), value=IGNORED)
    return batch


def objective(model: Any, batch: Mapping[str, Tensor]) -> Tally:
    """Sum of −log p over the title's tokens and its closing one, and how many these are."""
    labels = batch["labels"]
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    if model.config.is_encoder_decoder:
        if "decoder_input_ids" not in inputs:
            inputs["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(labels=labels)
        logits = model(**inputs, use_cache=False).logits
    else:  # the logits of source and title together are never made
        return model_vocabulary_loss(model, {**inputs, "use_cache": False}, labels, shift=True)
    return token_loss(logits.float() if logits.dtype.itemsize < 4 else logits, labels)


@dataclass(frozen=True, slots=True)
class Title:
    """A written title; ``log_probability`` of its tokens and their end, ``finished``: it ended before ``title_tokens``;
    ``tokens`` without the closing one."""

    text: str
    log_probability: float
    finished: bool
    tokens: tuple[int, ...] = ()


def answer(
    model: Any,
    tokenizer: Any,
    sources: Sequence[str | Pair],
    settings: TitleSettings,
    *,
    batch_size: int = 32,
    progress: Callable[[int, int], None] | None = None,
) -> list[Title]:
    """A title for every source, in order; sources of like length are written together."""
    _, last = marks(tokenizer)
    texts = [one.source if isinstance(one, Pair) else one for one in sources]
    before, _ = prompts(texts, tokenizer, settings)
    found: dict[int, Title] = {}
    by_length = sorted(range(len(before)), key=lambda at: -len(before[at]))
    device, was_training = next(model.parameters()).device, model.training
    model.eval()
    step = steps(model)
    options: dict[str, Any] = {"stop": [last], "max_tokens": settings.title_tokens, "min_tokens": 1}
    try:
        for at in range(0, len(by_length), batch_size):
            chosen = by_length[at : at + batch_size]
            ids, mask = _padded([before[number] for number in chosen], tokenizer.pad_token_id, settings.kind)
            ids, mask = ids.to(device), mask.to(device)
            if settings.beams == 1:
                best = greedy(step, ids, mask, **options)
            else:
                best = [
                    own[0]
                    for own in beam(
                        step, ids, mask, width=settings.beams, length_penalty=settings.length_penalty, **options
                    )
                ]
            for number, one in zip(chosen, best, strict=True):
                text = join_pieces(tokenizer.decode(list(one.tokens), skip_special_tokens=True))
                found[number] = Title(text, one.log_probability, one.finished, one.tokens)
            if progress is not None:
                progress(len(found), len(before))
    finally:
        model.train(was_training)
    return [found[number] for number in range(len(before))]


def score(titles: Sequence[Title | str], pairs: Sequence[Pair]) -> dict[str, Any]:
    """Shares from 0 to 1: means over the titles; ``corpus_bleu``, ``distinct_*`` of all together; intervals by bootstrap."""
    written = [one if isinstance(one, str) else one.text for one in titles]
    facts: dict[str, Any] = {"titles": len(written)}
    for way, split in (("characters", generation.characters), ("words", generation.words)):
        own, wanted = [split(text) for text in written], [split(pair.title) for pair in pairs]
        both = list(zip(own, wanted, strict=True))
        for name, values in {
            "rouge_1": [generation.rouge_n(a, b, 1).f1 for a, b in both],
            "rouge_2": [generation.rouge_n(a, b, 2).f1 for a, b in both],
            "rouge_l": [generation.rouge_l(a, b).f1 for a, b in both],
            "bleu": [generation.sentence_bleu(a, [b]) for a, b in both],
        }.items():
            facts[f"{name}_{way}"] = sum(values) / max(1, len(values))
            if len(values) > 1:
                facts[f"{name}_{way}_interval"] = bootstrap(values)
        facts[f"corpus_bleu_{way}"] = generation.corpus_bleu(own, [[one] for one in wanted]) if both else 0.0
        if way == "characters":
            facts |= {f"distinct_{n}": generation.distinct(own, n) for n in (1, 2)}
            facts["repetition"] = generation.repetition(own, 2)
            facts["mean_length"] = sum(map(len, own)) / max(1, len(own))
            facts["mean_gold_length"] = sum(map(len, wanted)) / max(1, len(wanted))
            facts["exact_match"] = sum(a == b for a, b in both) / max(1, len(both))
    facts["unfinished"] = sum(not one.finished for one in titles if isinstance(one, Title))
    facts["empty"] = sum(not text.strip() for text in written)
    return facts


def example(settings: TitleSettings, rows: int, positions: int) -> dict[str, Tensor]:
    """A batch of ``rows`` rows of ``positions`` tokens; its values mean nothing."""
    batch = token_batch(rows, positions)
    if settings.kind == "encoder-decoder":
        batch["labels"] = torch.zeros(
            rows, settings.title_tokens + (settings.title_tokens == positions), dtype=torch.long
        )
    elif settings.kind == "prefix":
        batch["token_type_ids"] = torch.zeros_like(batch["input_ids"])
    return batch


def _ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
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


RECIPE = Recipe(
    name="title",
    head="prefix",
    settings=TitleSettings,
    read=read,
    encode=encode,
    objective=objective,
    answer=answer,
    score=score,
    example=example,
    collate=collate_titles,
)
