"""What a dialogue model says: replies to many talks at once, the probability of what was said, and their scores."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy
import torch
from torch import Tensor, nn

from jieyue.data.batch import IGNORED, collate, pad_of
from jieyue.data.dialogues import Dialogue
from jieyue.data.history import ENDED, TURNS, Message, fit_history, template_for
from jieyue.data.history import Tokenizer as Speaker
from jieyue.data.packing import next_labels
from jieyue.decoding.sampling import Sampler, Sampling
from jieyue.decoding.search import greedy, sample
from jieyue.hf.steps import steps
from jieyue.metrics.generation import corpus_bleu, distinct, entropy, nist, repetition, words
from jieyue.tally import Tally
from jieyue.tasks.batches import Done, answers_in_batches
from jieyue.training.objective import token_loss

from .rows import tokenised
from .settings import ChatSettings

if TYPE_CHECKING:
    from jieyue.hf.types import Tokenizer

__all__ = ["ends_of", "fits", "log_probability", "reply_to", "score_replies"]


def ends_of(model: nn.Module, tokenizer: Speaker) -> frozenset[int]:
    """The tokens that end a turn: what the template puts there, and what the model's own settings say."""
    own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ends = {int(one) for one in (own if isinstance(own, list) else [own]) if one is not None}
    template = template_for(tokenizer)
    if template == TURNS:
        ends.add(int(tokenizer.sep_token_id))
    elif tokenizer.eos_token_id is not None and (template == ENDED or not ends):
        ends.add(int(tokenizer.eos_token_id))
    return frozenset(ends)


def fits(tokenizer: Tokenizer, talk: Sequence[Message], settings: ChatSettings) -> bool:
    """Whether at least the newest turn can be read, with what frames it and what the system says before."""
    least = talk[-1:] if len(talk) == 1 or talk[0].role != "system" else (talk[0], talk[-1])
    return len(fit_history(tokenizer, least, 2**31).ids) <= settings.max_tokens


def reply_to(
    model: nn.Module,
    tokenizer: Tokenizer,
    talks: Sequence[Sequence[Message]],
    settings: ChatSettings,
    *,
    batch_size: int = 32,
    sampling: Sampling | None = None,
    done: Done | None = None,
) -> list[str]:
    """A reply to each talk, token by token, many talks at once; talks of like length together.

    ``sampling`` None: the likeliest reply. Else drawn, talk r by its own generator of seed + r: no reply depends on the others.
    """
    ends, room, most, pad = ends_of(model, tokenizer), settings.max_tokens, settings.reply_tokens, pad_of(tokenizer)
    prompts = [(number, fit_history(tokenizer, talk, room).ids) for number, talk in enumerate(talks)]

    def padded(rows: list[tuple[int, numpy.ndarray]]) -> dict[str, Tensor]:
        width = max(len(ids) for _, ids in rows)
        tokens = torch.full((len(rows), width), pad, dtype=torch.long)
        for row, (_, ids) in zip(tokens, rows, strict=True):
            row[width - len(ids) :] = torch.from_numpy(ids)
        lengths = torch.tensor([len(ids) for _, ids in rows])
        return {"tokens": tokens, "kept": (torch.arange(width)[None] >= width - lengths[:, None]).long()}

    def read(rows: list[tuple[int, numpy.ndarray]], batch: dict[str, Tensor]) -> list[str]:
        step = steps(model)
        if sampling is None:
            found = greedy(step, batch["tokens"], batch["kept"], stop=ends, max_tokens=most)
        else:
            samplers = [_sampler(sampling, number, ids, ends) for number, ids in rows]
            found = sample(step, batch["tokens"], batch["kept"], samplers=samplers, stop=ends, max_tokens=most)
        return [str(tokenizer.decode(list(one.tokens), skip_special_tokens=True)).strip() for one in found]

    return answers_in_batches(model, prompts, lambda row: len(row[1]), padded, read, batch_size=batch_size, done=done)


def _sampler(sampling: Sampling, number: int, prompt: numpy.ndarray, ends: frozenset[int]) -> Sampler:
    seed = None if sampling.seed is None else sampling.seed + number
    return Sampler(replace(sampling, seed=seed), prompt.tolist(), ends)


def log_probability(
    model: nn.Module,
    tokenizer: Tokenizer,
    dialogues: Sequence[Dialogue],
    settings: ChatSettings,
    *,
    batch_size: int = 32,
) -> tuple[Tally, int]:
    """(total and number of −log p over the tokens asked for, characters that these write): for perplexities."""
    found = list(tokenised(dialogues, tokenizer, replace(settings, row_tokens=None), Counter()))
    rows = [{"input_ids": ids, "labels": next_labels(ids, marks, settings.loss_on)} for ids, marks in found]
    characters = 0
    for row in rows:
        written = tokenizer.decode(row["labels"][row["labels"] != IGNORED], skip_special_tokens=True)
        characters += len("".join(str(written).split()))
    pad = pad_of(tokenizer)

    def read(batch: list[dict[str, numpy.ndarray]], inputs: dict[str, Tensor]) -> list[tuple[float, int]]:
        labels = inputs.pop("labels")
        tally = token_loss(model(**inputs, use_cache=False).logits.float(), labels)
        return [(float(tally.total), int(tally.weight)), *[(0.0, 0)] * (len(batch) - 1)]

    tallies = answers_in_batches(
        model, rows, lambda row: len(row["input_ids"]), lambda some: collate(some, pad), read, batch_size=batch_size
    )
    return Tally(sum(total for total, _ in tallies), sum(weight for _, weight in tallies)), characters


def score_replies(
    replies: Sequence[str], golds: Sequence[str], loss: Tally | None = None, characters: int = 0
) -> dict[str, float]:
    """The scores of held-out replies, on words and single Chinese characters; the perplexities of ``loss`` (``log_probability``)."""
    said, wanted = [words(text) for text in replies], [[words(text)] for text in golds]
    facts: dict[str, float] = {}
    if loss is not None:
        facts["perplexity_token"] = math.exp(min(float(loss.mean()), 700.0))
        facts["perplexity_character"] = math.exp(min(float(loss.total) / max(characters, 1), 700.0))
    return facts | {
        "bleu_2": corpus_bleu(said, wanted, 2),
        "bleu_4": corpus_bleu(said, wanted, 4),
        "nist": nist(said, wanted, 4),
        "dist_1": distinct(said, 1),
        "dist_2": distinct(said, 2),
        "entropy_4": entropy(said, 4),
        "repetition": repetition(said, 4),
        "mean_words": sum(map(len, said)) / max(len(said), 1),
    }
