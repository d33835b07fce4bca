"""The loss of the examples set aside, for tasks that decide by another score: it is drawn beside the training loss."""

from __future__ import annotations

from functools import cached_property

from torch import Tensor, nn

from jieyue.budget import Plan
from jieyue.errors import InputError
from jieyue.training.evaluation import measure_loss

from .prepare import Prepared

__all__ = ["AsideLoss"]


class AsideLoss:
    """The task's own loss, without remedies, of the first ``curve_examples`` set aside; they are encoded once, when first asked for."""

    def __init__(self, prepared: Prepared, plan: Plan) -> None:
        self.prepared, self.micro = prepared, prepared.micro_batch(plan)

    @classmethod
    def of(cls, prepared: Prepared, plan: Plan) -> AsideLoss | None:
        """None where the deciding score is a loss itself, or nothing is set aside."""
        is_loss = prepared.task.deciding_of(prepared.settings).quantity == "loss"
        return None if is_loss or not prepared.sources.set_aside else cls(prepared, plan)

    @cached_property
    def _batch(self) -> dict[str, Tensor] | None:
        """None where encoding leaves no row of them, or refuses one."""
        prepared, task = self.prepared, self.prepared.task
        examples = prepared.sources.set_aside[: task.curve_examples]
        try:
            rows, _ = task.encode(examples, prepared.model.tokenizer, prepared.settings)
        except InputError:
            return None  # an example that training would refuse: its score is drawn all the same
        return prepared.collate([rows[number] for number in range(len(rows))]) if len(rows) else None

    def __call__(self, model: nn.Module) -> float | None:
        """The mean over labels; None where there is none. Modes and random state are as before afterwards."""
        if self._batch is None:
            return None
        tally = measure_loss(self.prepared.plain, model, self._batch, micro_batch=self.micro)
        return float(tally.mean()) if tally.weight else None
