"""Scheduled sampling for Transformers, in two passes (Mihaylova and Martins 2019): the decoder reads some of its own tokens.

The first pass, without gradients, says what the model would write after the true beginning; in the second pass each target
token is, with probability p, what it said there. All positions run in parallel, as the first pass's beginnings are true ones.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from jieyue.errors import InputError
from jieyue.tally import Tally
from jieyue.training.objective import Objective

from .embeddings import embeddings_through
from .remedy import Remedy, Rows, uniforms
from .targets import bare, decoder_inputs, logits_of, special_ids, target_inputs

__all__ = ["sample_scheduled"]

Choice = Literal["argmax", "sample", "gumbel"]
Schedule = float | Mapping[int, float] | Callable[[int], float]
_CHOICES = ("argmax", "sample", "gumbel")
_MIXED, _CHOSEN, _NOISE = 11, 12, 13  # streams of chance


def sample_scheduled(
    schedule: Schedule = 0.25,
    choice: Choice = "argmax",
    *,
    temperature: float = 1.0,
    specials: Collection[int] | None = None,
) -> Remedy:
    """A remedy: with a probability that may change over the updates, the decoder reads its own token instead of the true one.

    ``schedule``: p; or {update: p}, linear in between and constant outside; or a function of the update's number. ``choice``:
    ``argmax`` the likeliest token, ``sample`` a draw, ``gumbel`` the mixture Σ softmax((log p + noise)/temperature)·E of all
    embeddings (no gradient flows through the weights). Labels, specials, padding and source stay.

    Cost: one more forward pass, and once more the logits of the batch; ``gumbel`` needs three tensors of that kind.
    """
    probability = _probability(schedule)
    if choice not in _CHOICES or temperature <= 0:
        raise InputError(
            f"sample_scheduled(choice={choice!r}, temperature={temperature}): expected one of {', '.join(_CHOICES)}, above 0"
        )

    def run(objective: Objective, model: nn.Module, rows: Rows, step: int) -> Tally:
        chance = probability(step)
        if chance == 0:
            return objective(model, rows.changed())
        name, tokens = decoder_inputs(model, rows)
        with torch.no_grad(), logits_of(model) as found:
            objective(model, rows)
        never = torch.tensor(special_ids(model) if specials is None else sorted({*specials}), device=tokens.device)
        said = found[-1][:, :-1].index_fill(-1, never, -torch.inf)  # row t speaks of what is read at t + 1
        targets = target_inputs(model, rows, tokens, never)
        positions, seeds = targets.cumsum(1), rows.seeds[:, None]
        own = targets & (uniforms(seeds, positions, _MIXED) < chance)
        own[:, 0] = False
        if choice == "gumbel":
            noise = uniforms(seeds[:, :, None], _grid(positions, said.shape[-1]), _NOISE)[:, 1:]
            return _softly(objective, model, rows.changed(**{name: tokens}), own, _weights(said, noise, temperature))
        if choice == "argmax":
            written = said.argmax(-1)
        else:
            written = _at_chance(said / temperature, uniforms(seeds, positions, _CHOSEN)[:, 1:])
        written = torch.cat([tokens[:, :1], written], 1)
        return objective(model, rows.changed(**{name: torch.where(own, written, tokens)}))

    return Remedy(f"sample_scheduled({_text(schedule)}, {choice!r})", run)


def _probability(schedule: Schedule) -> Callable[[int], float]:
    """The schedule as a function; every value is a probability."""
    if callable(schedule):
        return schedule
    points = sorted(schedule.items()) if isinstance(schedule, Mapping) else [(0, float(schedule))]
    if not points or not all(0 <= value <= 1 for _, value in points):
        raise InputError(f"sample_scheduled({schedule!r}): expected a probability, or {{update: probability}}")

    def between(step: int) -> float:
        if step <= points[0][0]:
            return points[0][1]
        for (first, low), (last, high) in itertools.pairwise(points):
            if step < last:
                return low + (high - low) * (step - first) / (last - first)
        return points[-1][1]

    return between


def _text(schedule: Schedule) -> str:
    return getattr(schedule, "__name__", "a function") if callable(schedule) else str(schedule)


def _at_chance(logits: Tensor, chance: Tensor) -> Tensor:
    """The token at which the distribution function passes ``chance`` [B, T]: one draw for each row of logits [B, T, V]."""
    below = logits.float().softmax(-1).cumsum(-1)
    return torch.searchsorted(below, chance[:, :, None] * below[:, :, -1:])[:, :, 0].clamp_max(logits.shape[-1] - 1)


def _grid(positions: Tensor, num_tokens: int) -> Tensor:
    """A number of its own for each position and token: [B, T, V]."""
    return positions[:, :, None] * num_tokens + torch.arange(num_tokens, device=positions.device)


def _weights(said: Tensor, chance: Tensor, temperature: float) -> Tensor:
    noise = -torch.log(-torch.log(chance.clamp(1e-7, 1 - 1e-7)))
    return ((said.log_softmax(-1) + noise.to(said)) / temperature).softmax(-1)


def _softly(objective: Objective, model: nn.Module, rows: Rows, own: Tensor, weights: Tensor) -> Tally:
    """The objective with mixtures of embeddings where ``own``; the decoder's embedding is the last of a pass."""
    last = 1 if getattr(getattr(bare(model), "config", None), "is_encoder_decoder", False) else 0

    def mix(out: Tensor, place: int, module: nn.Module) -> Tensor:
        if place != last:
            return out
        table = module.get_parameter("weight")
        mixed = (weights.to(table.dtype) @ table) * getattr(module, "embed_scale", 1.0)
        return torch.where(own[:, :, None], nn.functional.pad(mixed, (0, 0, 1, 0)).to(out.dtype), out)

    with embeddings_through(model, mix):
        return objective(model, rows)
