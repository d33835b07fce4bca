"""From a step to a text: the likeliest token each time, a draw each time, or the best of several hypotheses (beam).

    step(tokens, state) -> (logits [R, V], state)

The first call gives the prompts, tokens [R, N], and whatever state its maker asks for (None, a mask); later calls give one
token a row, tokens [R]. ``state.reorder(index)`` makes row r what row index[r] was, with more rows or fewer. The prompts are
read once, not once for each hypothesis; rows that are done leave the batch.

A finished hypothesis is kept, and the search goes on until none that still runs can beat it. (A search that throws away a
finished hypothesis which is not the best at that moment finds less probable texts: bert4keras, see 7259.)

Letters: R rows, N tokens of a prompt, V vocabulary, L examples still searched, W width, S stop tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from jieyue.errors import InputError

__all__ = ["Found", "Step", "beam", "greedy", "sample"]


class State(Protocol):
    """What a step remembers, a row for each row of the batch."""

    def reorder(self, index: Tensor) -> None: ...


First: TypeAlias = Tensor | State | None  # what the caller gives to the first step
Step: TypeAlias = Callable[[Tensor, Any], tuple[Tensor, State]]  # given what the last step gave, each its own kind


@dataclass(frozen=True, slots=True)
class Found:
    """A text. ``tokens`` are without the stop token; ``log_probability`` is theirs and its together, by the model itself.

    ``score``: what hypotheses are ranked by; ``finished``: a stop token came before ``max_tokens``.
    """

    tokens: tuple[int, ...]
    log_probability: float
    score: float
    finished: bool


@torch.inference_mode()
def greedy(
    step: Step,
    tokens: Tensor,
    state: First = None,
    *,
    stop: Collection[int] = (),
    max_tokens: int = 32,
    min_tokens: int = 0,
) -> list[Found]:
    """The likeliest token at every step; one text for each row. The first of equally likely tokens is taken.

    ``stop``: tokens that end a text; ``max_tokens`` counts them; a text of fewer than ``min_tokens`` cannot end.
    """

    def choose(logits: Tensor, rows: Sequence[int], num_said: int) -> Tensor:
        return _without(logits, ends, num_said < min_tokens).argmax(-1)

    ends = _ends(stop, max_tokens, tokens)
    return _walk(step, tokens, state, choose, ends, max_tokens)


@torch.inference_mode()
def sample(
    step: Step,
    tokens: Tensor,
    state: First = None,
    *,
    samplers: Sequence[Callable[[Tensor], int]],
    stop: Collection[int] = (),
    max_tokens: int = 32,
) -> list[Found]:
    """``samplers[r]`` (a ``decoding.sampling.Sampler``) draws the tokens of row r from its logits [V].

    Each row draws by its own sampler: what it says does not depend on the rows beside it.
    """
    if len(samplers) != len(tokens):
        raise InputError(f"sample: found {len(samplers)} samplers, expected one for each of {len(tokens)} rows")

    def choose(logits: Tensor, rows: Sequence[int], num_said: int) -> Tensor:
        drawn = [samplers[row](own) for row, own in zip(rows, logits, strict=True)]
        return torch.tensor(drawn, device=logits.device)

    return _walk(step, tokens, state, choose, _ends(stop, max_tokens, tokens), max_tokens)


def _walk(
    step: Step, tokens: Tensor, state: First, choose: Callable[..., Tensor], ends: Tensor, max_tokens: int
) -> list[Found]:
    """One token a row and step, until every row has ended; rows that have leave the batch."""
    said: list[list[int]] = [[] for _ in tokens]
    sums = torch.zeros(len(tokens), dtype=torch.float64, device=tokens.device)
    finished, rows = set[int](), list(range(len(tokens)))
    for num_said in range(max_tokens):
        logits, state = step(tokens, state)
        tokens = choose(logits, rows, num_said)
        chosen = logits.gather(1, tokens[:, None])[:, 0] - logits.logsumexp(-1)
        sums[torch.tensor(rows, device=sums.device)] += chosen.double()
        over = torch.isin(tokens, ends).tolist()
        for row, token, ended in zip(rows, tokens.tolist(), over, strict=True):
            if ended:
                finished.add(row)
            else:
                said[row].append(token)
        if all(over):
            break
        if any(over) and num_said + 1 < max_tokens:
            staying = torch.tensor([at for at, ended in enumerate(over) if not ended], device=tokens.device)
            state.reorder(staying)
            tokens, rows = tokens[staying], [row for row in rows if row not in finished]
    return [
        Found(tuple(own), total, total, row in finished)
        for row, (own, total) in enumerate(zip(said, sums.tolist(), strict=True))
    ]


@torch.inference_mode()
def beam(
    step: Step,
    tokens: Tensor,
    state: First = None,
    *,
    width: int,
    stop: Collection[int] = (),
    max_tokens: int = 32,
    min_tokens: int = 0,
    length_penalty: float = 0.0,
) -> list[list[Found]]:
    """For each row at most ``width`` texts, the best first: score = log p / (tokens with their stop token)^length_penalty.

    ``length_penalty`` 0 ranks by probability (the article), 1 by the mean per token (transformers' default); above 0 favours
    long texts. At every step the best W·(1 + S) continuations are looked at; those of the first W that end are kept, the best W
    that do not end go on. Texts that reach ``max_tokens`` count as they stand. Equals transformers' ``generate`` with the same
    ``num_beams`` and ``early_stopping="never"``.
    """
    if width < 1:
        raise InputError(f"beam(width={width}): expected at least 1")
    ends = _ends(stop, max_tokens, tokens)
    kept: list[list[Found]] = [[] for _ in tokens]
    live = list(range(len(tokens)))
    sums = torch.zeros(len(tokens), 1, dtype=torch.float64, device=tokens.device)  # [L, 1], later [L, W]
    said = torch.zeros(len(tokens), 1, 0, dtype=torch.long, device=tokens.device)  # [L, W, tokens]
    for num_said in range(1, max_tokens + 1):
        logits, state = step(tokens, state)
        chances = _without(logits.log_softmax(-1, dtype=_wide(logits)), ends, num_said - 1 < min_tokens)
        ranked, parents, chosen = _ranked(sums, chances, width, len(ends))
        ending = torch.isin(chosen, ends)
        closing = ending if num_said < max_tokens else torch.ones_like(ending)
        for at, place in (closing[:, :width] & ranked[:, :width].isfinite()).nonzero().tolist():
            own = [*said[at, parents[at, place]].tolist(), int(chosen[at, place])]
            total, ended = float(ranked[at, place]), bool(ending[at, place])
            text = Found(tuple(own[:-1] if ended else own), total, total / num_said**length_penalty, ended)
            kept[live[at]] = sorted([*kept[live[at]], text], key=lambda one: -one.score)[:width]
        sums, places = ranked.masked_fill(closing, -torch.inf).topk(min(width, ranked.shape[1]))
        parents, chosen = parents.gather(1, places), chosen.gather(1, places)
        longest = max_tokens if length_penalty >= 0 else num_said + 1
        bounds = (sums[:, 0] / longest**length_penalty).tolist()
        going = [at for at, bound in enumerate(bounds) if _can_gain(kept[live[at]], bound, width)]
        if not going:
            break
        index = torch.tensor(going, device=tokens.device)
        live, sums, parents, chosen = [live[at] for at in going], sums[index], parents[index], chosen[index]
        rows = torch.arange(len(said), device=tokens.device)[index, None] * said.shape[1] + parents
        said = torch.cat([said.flatten(0, 1)[rows], chosen[:, :, None]], -1)
        state.reorder(rows.flatten())
        tokens = chosen.flatten()
    return kept


def _ranked(sums: Tensor, chances: Tensor, width: int, num_ends: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best continuations of each example: log probability, hypothesis, token, each [L, W·(1 + S)]."""
    vocabulary = chances.shape[-1]
    totals = (sums.flatten()[:, None] + chances).reshape(len(sums), -1)
    ranked, places = totals.topk(min(width * (1 + max(1, num_ends)), totals.shape[1]))
    return ranked, places // vocabulary, places % vocabulary


def _can_gain(kept: Sequence[Found], bound: float, width: int) -> bool:
    """Whether a hypothesis that cannot score above ``bound`` could still be among the kept."""
    return bound > -torch.inf and (len(kept) < width or bound > kept[-1].score)


def _without(scores: Tensor, ends: Tensor, forbidden: bool) -> Tensor:
    return scores.index_fill(-1, ends, -torch.inf) if forbidden and len(ends) else scores


def _ends(stop: Collection[int], max_tokens: int, tokens: Tensor) -> Tensor:
    if max_tokens < 1:
        raise InputError(f"max_tokens={max_tokens}: expected at least 1")
    if tokens.ndim != 2 or 0 in tokens.shape:
        raise InputError(f"tokens: found shape {list(tokens.shape)}, expected prompts [R, N] with tokens in them")
    return torch.tensor(sorted(stop), dtype=torch.long, device=tokens.device)


def _wide(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32
