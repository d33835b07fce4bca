"""Dialogue by a causal language model, every turn learned in one pass: section "DialoGPT-like multi-turn chit-chat", 7718.

Input ``[CLS] u1 [SEP] u2 [SEP] …`` (or the model's own chat template); every position is asked for the next token, so n
replies need one row, not n. Short dialogues share rows without seeing one another (presets). What is too long loses whole
oldest turns, by the same code that serves (data/history.py).

  data      LCCC, CDial-GPT, OpenAI messages: data/dialogues.py
  command   jieyue train chat, jieyue chat, jieyue serve
  cost      tokens on disk, mapped; one forward and backward pass over each token
  score     perplexity a token and a character; BLEU-2/4, NIST, Dist-1/2, entropy, length, repetition of greedy replies
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import tempfile
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from jieyue import __version__
from jieyue.data.batch import IGNORED, collate
from jieyue.data.dialogues import Dialogue, DialogueFiles, digest_of
from jieyue.data.findings import Findings
from jieyue.data.history import ENDED, TURNS, Message, encode_talks, fit_history, template_for
from jieyue.data.mapped import ANY_TURN, LAST_TURN, REPLY, keep_tokens, write_tokens
from jieyue.data.packing import LOSS_ON, DialogueRows, next_labels
from jieyue.decoding.sampling import Sampler, Sampling
from jieyue.decoding.search import greedy, sample
from jieyue.errors import InputError
from jieyue.hf.steps import steps
from jieyue.metrics.generation import corpus_bleu, distinct, entropy, nist, repetition, words
from jieyue.tally import Tally
from jieyue.training.objective import token_loss
from jieyue.training.vocabulary_loss import model_vocabulary_loss

from . import Recipe, Settings

__all__ = [
    "RECIPE",
    "ChatSettings",
    "answer",
    "encode",
    "ends_of",
    "fits",
    "log_probability",
    "objective",
    "read",
    "score",
]

_TOGETHER = 256  # dialogues that are tokenised at once


@dataclass(frozen=True, kw_only=True)
class ChatSettings(Settings):
    """``max_tokens``: of a dialogue, the longest row. ``loss_on``: "all" turns, "replies" or the "last" turn.

    ``row_tokens``: dialogues are packed into rows of so many tokens, none seeing another; None = a row each.
    ``reply_tokens``: the longest reply when judging.
    """

    max_tokens: int = 512
    loss_on: str = "all"
    row_tokens: int | None = None
    reply_tokens: int = 48

    def __post_init__(self) -> None:
        if self.loss_on not in LOSS_ON:
            raise InputError(f"loss_on={self.loss_on!r}: expected one of {', '.join(LOSS_ON)}")
        for name, least in (("max_tokens", 4), ("row_tokens", 4), ("reply_tokens", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"{name}={value}: expected at least {least}")

    def fitted(self, positions: int) -> ChatSettings:
        if self.max_tokens <= positions:
            return self
        return replace(self, max_tokens=positions)


def read(paths: str | Path | Sequence[str | Path], *, skip_bad: bool = False) -> tuple[DialogueFiles, Findings]:
    """The dialogues of the files, read anew whenever they are gone through, and what was found."""
    files = DialogueFiles(paths, skip_bad=skip_bad)
    return files, files.findings


def encode(
    dialogues: Sequence[Dialogue], tokenizer: Any, settings: ChatSettings, folder: Path | None = None
) -> tuple[DialogueRows, Counter[str]]:
    """Training rows over tokens in files: in ``folder``, where they are found again, or in a temporary one that goes with the rows.

    A row: ``input_ids``, ``labels`` (the next token where it is asked for, else -100) and, packed, ``position_ids``.
    Memory: a few hundred dialogues, whatever their number. The counts say what was dropped and cut. Tokens in ``folder`` that
    were made from other dialogues, by another tokenizer or for other settings are made anew.
    """
    counts, is_known = Counter[str](), False
    made = _tokenised(dialogues, tokenizer, settings, counts)
    if folder is None:
        place = tempfile.mkdtemp(prefix="jieyue-tokens-")
        tokens = write_tokens(place, made, {})
    else:
        tokens, is_known = keep_tokens(folder, _digest(dialogues, tokenizer, settings), made, counts)
        counts = Counter(tokens.counts["counts"])
    rows = DialogueRows(tokens, settings.loss_on, settings.row_tokens)
    if folder is None:
        weakref.finalize(rows, shutil.rmtree, place, ignore_errors=True)
    counts["rows"] = len(rows)
    counts["rows_found_again"] = len(rows) * is_known
    counts["tokens"] = int(tokens.lengths.sum())
    counts["longest_row_tokens"] = int(rows.lengths.max()) if len(rows) else 0
    return rows, counts


def _digest(dialogues: Sequence[Dialogue], tokenizer: Any, settings: ChatSettings) -> str:
    """Identifies what tokens are made from: the dialogues, the tokenizer with its template, settings, our version."""
    inner = json.loads(tokenizer.backend_tokenizer.to_str()) if tokenizer.is_fast else None
    if inner is not None:
        inner |= {"truncation": None, "padding": None}  # what calls set for themselves
    own = [inner, template_for(tokenizer), tokenizer.special_tokens_map]
    said = [digest_of(dialogues), own, settings.max_tokens, settings.loss_on, __version__]
    return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _tokenised(
    dialogues: Sequence[Dialogue], tokenizer: Any, settings: ChatSettings, counts: Counter[str]
) -> Iterator[tuple[numpy.ndarray, numpy.ndarray]]:
    """(ids, marks) of each dialogue that has something to learn."""
    unknown = getattr(tokenizer, "unk_token_id", None)
    remaining = iter(dialogues)
    while some := list(islice(remaining, _TOGETHER)):
        for messages, talk in zip(some, encode_talks(tokenizer, some), strict=True):
            ids, turns = talk.ids, talk.turns
            if len(ids) > settings.max_tokens:
                ids, turns, messages = _shortened(messages, tokenizer, settings.max_tokens, counts)
            marks = numpy.zeros(len(ids), numpy.uint8)
            for number, ((first, stop), one) in enumerate(zip(turns, messages, strict=True)):
                mark = ANY_TURN | (REPLY if one.role == "assistant" else 0)
                marks[first:stop] |= mark | (LAST_TURN if number == len(messages) - 1 else 0)
            if not (marks[1:] & LOSS_ON[settings.loss_on]).any():
                counts["dialogues_without_loss"] += 1
                continue
            if unknown is not None:
                counts["unknown_tokens"] += int((ids == unknown).sum())
            yield ids, marks


def _shortened(
    messages: Dialogue, tokenizer: Any, most: int, counts: Counter[str]
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


def objective(model: Any, batch: Mapping[str, Tensor]) -> Tally:
    """Sum of −log p over the tokens that are asked for, and how many these are; the logits are never whole.

    ``batch``: ``input_ids``, ``labels`` [B, L] (already shifted) and ``attention_mask``, or ``position_ids`` that start
    again at every dialogue: then none sees another.
    """
    inputs = {"input_ids": batch["input_ids"], "use_cache": False}
    if "position_ids" in batch:
        inputs |= {"position_ids": batch["position_ids"], "attention_mask": _apart(batch["position_ids"], model)}
    elif "attention_mask" in batch:
        inputs["attention_mask"] = batch["attention_mask"]
    return model_vocabulary_loss(model, inputs, batch["labels"])


def _apart(positions: Tensor, model: Any) -> Tensor:
    """What each position may see [B, 1, L, L]: itself and what came before in its own dialogue; added to the scores."""
    dialogue = (positions == 0).cumsum(1)
    seen = (dialogue[:, :, None] == dialogue[:, None, :]).tril()
    dtype = next(model.parameters()).dtype
    return torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)[:, None]


def example(settings: ChatSettings, rows: int, positions: int) -> dict[str, Tensor]:
    """A batch of the widest shape, for the planner."""
    batch = {name: torch.zeros(rows, positions, dtype=torch.long) for name in ("input_ids", "labels")}
    batch["attention_mask"] = torch.ones(rows, positions, dtype=torch.long)
    if settings.row_tokens is not None:
        batch["position_ids"] = torch.arange(positions).repeat(rows, 1)
    return batch


def ends_of(model: Any, tokenizer: Any) -> frozenset[int]:
    """The tokens that end a turn: what the template puts there, and what the model's own settings say."""
    own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ends = {int(one) for one in (own if isinstance(own, list) else [own]) if one is not None}
    template = template_for(tokenizer)
    if template == TURNS:
        ends.add(int(tokenizer.sep_token_id))
    elif tokenizer.eos_token_id is not None and (template == ENDED or not ends):
        ends.add(int(tokenizer.eos_token_id))
    return frozenset(ends)


def fits(tokenizer: Any, talk: Sequence[Message], settings: ChatSettings) -> bool:
    """Whether at least the newest turn can be read, with what frames it and what the system says before."""
    least = talk[-1:] if len(talk) == 1 or talk[0].role != "system" else (talk[0], talk[-1])
    return len(fit_history(tokenizer, least, 2**31).ids) <= settings.max_tokens


@torch.inference_mode()
def answer(
    model: Any,
    tokenizer: Any,
    talks: Sequence[Sequence[Message]],
    settings: ChatSettings,
    *,
    batch_size: int = 32,
    sampling: Sampling | None = None,
) -> list[str]:
    """A reply to each talk, token by token, many talks at once; talks of like length together.

    ``sampling`` None: the likeliest reply. Else drawn, talk r by its own generator of seed + r: no reply depends on the others.
    """
    ends, room = ends_of(model, tokenizer), settings.max_tokens
    prompts = [fit_history(tokenizer, talk, room).ids for talk in talks]
    replies = [""] * len(talks)
    order = sorted(range(len(talks)), key=lambda number: len(prompts[number]))
    device = next(model.parameters()).device
    step = steps(model.eval())
    for first in range(0, len(order), batch_size):
        numbers = order[first : first + batch_size]
        width = max(len(prompts[number]) for number in numbers)
        tokens = torch.full((len(numbers), width), int(tokenizer.pad_token_id or 0), dtype=torch.long)
        for row, number in zip(tokens, numbers, strict=True):
            row[width - len(prompts[number]) :] = torch.from_numpy(prompts[number])
        lengths = torch.tensor([len(prompts[number]) for number in numbers])
        kept = (torch.arange(width)[None] >= width - lengths[:, None]).long()
        inputs, most = (step, tokens.to(device), kept.to(device)), settings.reply_tokens
        if sampling is None:
            found = greedy(*inputs, stop=ends, max_tokens=most)
        else:
            samplers = [_sampler(sampling, number, prompts[number], ends) for number in numbers]
            found = sample(*inputs, samplers=samplers, stop=ends, max_tokens=most)
        for number, one in zip(numbers, found, strict=True):
            replies[number] = tokenizer.decode(one.tokens, skip_special_tokens=True).strip()
    return replies


def _sampler(sampling: Sampling, number: int, prompt: numpy.ndarray, ends: frozenset[int]) -> Sampler:
    seed = None if sampling.seed is None else sampling.seed + number
    return Sampler(replace(sampling, seed=seed), prompt.tolist(), ends)


@torch.inference_mode()
def log_probability(
    model: Any, tokenizer: Any, dialogues: Sequence[Dialogue], settings: ChatSettings, *, batch_size: int = 32
) -> tuple[Tally, int]:
    """(total and number of −log p over the tokens asked for, characters that these write): for perplexities."""
    counts = Counter[str]()
    alone = replace(settings, row_tokens=None)
    found = list(_tokenised(dialogues, tokenizer, alone, counts))
    found.sort(key=lambda pair: len(pair[0]))
    total, weight, characters = 0.0, 0, 0
    device = next(model.parameters()).device
    for first in range(0, len(found), batch_size):
        rows = []
        for ids, marks in found[first : first + batch_size]:
            labels = next_labels(ids, marks, settings.loss_on)
            written = tokenizer.decode(labels[labels != IGNORED], skip_special_tokens=True)
            characters += len("".join(str(written).split()))
            rows.append({"input_ids": ids, "labels": labels})
        batch = {name: value.to(device) for name, value in collate(rows, int(tokenizer.pad_token_id or 0)).items()}
        labels_ = batch.pop("labels")
        tally = token_loss(model(**batch, use_cache=False).logits.float(), labels_)
        total, weight = total + float(tally.total), weight + int(tally.weight)
    return Tally(total, weight), characters


def score(replies: Sequence[str], golds: Sequence[str], loss: Tally, characters: int) -> dict[str, float]:
    """The scores of held-out replies, on words and single Chinese characters, and the perplexities of a held-out part."""
    said, wanted = [words(text) for text in replies], [[words(text)] for text in golds]
    return {
        "perplexity_token": math.exp(min(float(loss.mean()), 700.0)),
        "perplexity_character": math.exp(min(float(loss.total) / max(characters, 1), 700.0)),
        "bleu_2": corpus_bleu(said, wanted, 2),
        "bleu_4": corpus_bleu(said, wanted, 4),
        "nist": nist(said, wanted, 4),
        "dist_1": distinct(said, 1),
        "dist_2": distinct(said, 2),
        "entropy_4": entropy(said, 4),
        "repetition": repetition(said, 4),
        "mean_words": sum(map(len, said)) / max(len(said), 1),
    }


RECIPE = Recipe(
    name="chat",
    head="causal-lm",
    settings=ChatSettings,
    read=read,
    encode=encode,
    keeps_tokens=True,
    objective=objective,
    answer=answer,
    score=score,
    example=example,
)
