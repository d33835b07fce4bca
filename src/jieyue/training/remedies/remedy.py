"""What a remedy is: it takes an objective and gives one. Both are ``(model, batch) -> Tally``, so remedies nest in any order.

    objective = fgm(0.5)(replace_tokens(0.3)(objective))       the outer one calls the inner one, perhaps twice

Law: a remedy treats every example by itself, so totals and weights of pieces add up to those of the whole batch. Chance obeys
it too: each row has a seed, drawn row by row from torch's CPU generator (or given as ``batch["seeds"]``, [B] integers), and all
that a remedy draws for a row comes from that seed and a position. However the batch is cut, the draws are the same; a remedy
that calls its objective twice gives it the same draws.

In evaluation mode, and where gradients are off, a remedy does nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from jieyue.errors import InputError
from jieyue.tally import Tally
from jieyue.training.objective import Batch, Objective

__all__ = ["Remedied", "Remedy", "Rows", "apply", "check_strength", "uniforms"]


class Rows(dict[str, Tensor]):
    """A batch whose rows have seeds [B]; to the objective inside it is the batch."""

    seeds: Tensor

    @classmethod
    def of(cls, batch: Batch) -> Rows:
        """The batch with its seeds, drawn where it brings none."""
        if isinstance(batch, Rows):
            return batch
        rows = cls(batch)
        given = rows.pop("seeds", None)
        labels = rows.get("labels")
        if not isinstance(labels, Tensor) or labels.ndim < 1:
            raise InputError("a remedy", f"a batch of {sorted(batch)}", "a tensor of labels, rows first")
        rows.seeds = torch.randint(2**62, (len(labels),)) if given is None else given
        rows.seeds = rows.seeds.to(labels.device)
        return rows

    def changed(self, **values: Tensor) -> Rows:
        """The same rows with other tensors; what is drawn from now on is independent of what was drawn before."""
        rows = Rows({**self, **values})
        rows.seeds = _mixed(self.seeds)
        return rows


@dataclass(frozen=True, slots=True)
class Remedy:
    """``remedy(objective) -> objective``. ``text`` is how it was asked for; it stands in the report.

    ``run(objective, model, rows, step) -> Tally``: ``objective`` is the one inside, ``step`` the number of the update.
    ``by_embedding``: it needs the embeddings of each example by itself, so that rows cannot be packed.
    """

    text: str
    run: Callable[[Objective, nn.Module, Rows, int], Tally]
    by_embedding: bool = False

    def __call__(self, objective: Objective) -> Remedied:
        return Remedied(self, objective)

    def __str__(self) -> str:
        return self.text


class Remedied:
    """An objective under a remedy. ``step`` (0 at first): the update's number, for what follows a schedule; set it as you go."""

    def __init__(self, remedy: Remedy, objective: Objective) -> None:
        self.remedy, self.objective, self._step = remedy, objective, 0

    def __call__(self, model: nn.Module, batch: Batch) -> Tally:
        if not (model.training and torch.is_grad_enabled()):
            return self.objective(model, {name: value for name, value in batch.items() if name != "seeds"})
        return self.remedy.run(self.objective, model, Rows.of(batch), self.step)

    @property
    def step(self) -> int:
        return self._step

    @step.setter
    def step(self, number: int) -> None:
        self._step = number
        if isinstance(self.objective, Remedied):
            self.objective.step = number

    def __repr__(self) -> str:
        return f"{self.remedy}({getattr(self.objective, '__name__', self.objective)})"


def apply(remedies: Iterable[Remedy], objective: Objective) -> Objective:
    """The objective under all of them, the first one innermost."""
    for remedy in remedies:
        if not isinstance(remedy, Remedy):
            raise InputError("remedies", repr(remedy), "replace_tokens(...), fgm(...) and the like")
        objective = remedy(objective)
    return objective


def uniforms(seeds: Tensor, positions: Tensor, stream: int) -> Tensor:
    """Numbers in [0, 1), a function of seed, position and stream alone: seeds [B, 1...], positions that broadcast with them.

    24 bits each, by the finaliser of splitmix64 (Steele et al. 2014).
    """
    state = _mixed(_mixed(seeds + stream * 0x632BE59BD9B4E019 % 2**62) + positions)
    return ((state >> 40) & 0xFFFFFF).to(torch.float32) / 2**24


def _mixed(state: Tensor) -> Tensor:
    """splitmix64's output function on int64, whose products wrap around."""
    state = state + -7046029254386353131
    state = (state ^ ((state >> 30) & 0x3FFFFFFFF)) * -4658895280553007687
    state = (state ^ ((state >> 27) & 0x1FFFFFFFFF)) * -7723592293110705685
    return state ^ ((state >> 31) & 0x1FFFFFFFF)


def check_strength(name: str, value: float) -> None:
    """``InputError`` for a strength of a remedy that is no finite number from 0 on."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise InputError(f"{name}={value!r}: expected a finite number, at least 0")
