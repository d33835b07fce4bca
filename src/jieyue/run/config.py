"""How to train: ``TrainingConfig``. Values only; what to train on is ``tasks.config.RunConfig``."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from importlib.util import find_spec
from typing import TYPE_CHECKING

from jieyue.errors import InputError, near
from jieyue.json_values import Facts
from jieyue.options import check_kinds, option

if TYPE_CHECKING:
    from jieyue.budget import Plan
    from jieyue.training.objective import Objective

__all__ = ["KEPT", "SCHEDULES", "TrainingConfig"]

KEPT = ("last", "best")
SCHEDULES = ("linear", "constant", "cosine")
LOGS = ("tensorboard", "wandb", "swanlab", "mlflow")  # those of transformers' integrations; each is its package's name
_LOOKS = ("evaluate_every", "patience")


def check_log(name: str | None) -> None:
    """``InputError`` for a log that is not known, or whose package is not installed."""
    if name is None:
        return
    if name not in LOGS:
        raise InputError(f"log={name!r}", repr(name), f"one of {', '.join(LOGS)}{near(name, LOGS)}")
    if find_spec(name) is None:
        raise InputError(f"log={name!r}", f"no package {name}", "it installed", f"pip install {name}")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How to train; every default is a real value, None means "decide for me" and the report says what was decided.

    At most one of ``steps``, ``epochs`` and ``seconds`` (none: two epochs). ``learning_rate``: None = 1e-3 for a preset,
    3e-5 for a checkpoint, 3e-4 for adapters, and a hundred times that for momentum. ``curriculum``: as
    ``data.curriculum.Curriculum`` reads it, such as "1:0.22,2:0.42"; None = the preset's own, "none" = whole passages from the
    beginning; reading alone has one.
    ``start``: how a preset's weights begin, None = its own way. ``optimizer``: of ``OPTIMIZERS``; ``dtype``: of ``DTYPES``,
    bfloat16 is autocast and an approximation; "auto" of either: the first that fits the budget (``run.ways``). ``in_backward``:
    each weight moves in the backward pass. ``keep``: "best" = by ``Task.deciding`` on the examples set aside, looked at every
    ``evaluate_every`` updates; ``patience``: looks without a better score after which training stops.
    ``remedies``: functions ``Objective -> Objective``, the first one innermost. ``plan``: obeyed, instead of planning anew.
    ``measure``: whether memory, savings and lengths are measured on the model after training, which costs some updates.
    """

    effective_batch: int = option(32, "Rows of one update, whatever fits at once.")
    steps: int | None = option(None, "Updates to train for.")
    epochs: float | None = option(None, "Passes over the rows (default 2).")
    seconds: float | None = option(
        None, "Train for about this long, such as 4min: turned into updates first.", flag="--time"
    )
    learning_rate: float | None = option(
        None, "Default: 1e-3 for a preset, 3e-5 for a checkpoint, 3e-4 for adapters; a hundred times that for momentum."
    )
    warmup_steps: int | None = option(None, "Updates in which the rate rises. Default: a tenth, at most 100.")
    schedule: str | None = option(
        None,
        "Of the rate: linear, constant or cosine. Default: linear; a preset's own stays until half time, then falls.",
        metavar="NAME",
    )
    weight_decay: float = option(0.01, "Of matrices; biases and norms have none.")
    max_grad_norm: float = option(1.0, "Longer gradients are cut to this norm; 0 = never.")
    evaluate_every: int | None = option(
        None, "Updates between two looks at the examples set aside. Default: an eighth of the run."
    )
    keep: str = option(
        "last",
        "Which weights stay: the last, or the best by the task's score on examples set aside.",
        metavar="best|last",
    )
    patience: int | None = option(None, "Stop after so many looks without a better score. Default: never.")
    seed: int = option(0, "Seed of everything random.")
    start: str | None = option(
        None, "How a preset's weights begin: orthogonal-copy or normal. Default: orthogonal-copy."
    )
    curriculum: str | None = option(
        None, "Passages grow: sentences:share of the updates, or none. Default: 1:0.22,2:0.42 for a preset."
    )
    checkpointing: bool | None = option(
        None, "Activation checkpointing (exact). Default: if needed.", off="--no-checkpointing"
    )
    optimizer: str = option(
        "adamw",
        "adamw, adafactor, momentum (SGD), tiger, muon, adam-mini, adamw-8bit (bitsandbytes); auto: adamw if it fits, else adafactor.",
        metavar="NAME",
    )
    dtype: str = option(
        "float32",
        "Of matrix products: float32, or bfloat16 (autocast; approximate); auto: the first of them that fits the budget.",
        metavar="NAME",
    )
    in_backward: bool = option(
        False,
        "Move each weight in the backward pass: no gradient is kept. The batch must fit in one piece; clipping is by the "
        "norm of the step before.",
    )
    save_steps: int = option(200, "Updates between checkpoints.")
    log: str | None = option(
        None,
        "Log every update there too: tensorboard (in the run's folder), wandb, swanlab or mlflow.",
        metavar="NAME",
    )
    remedies: tuple[Callable[[Objective], Objective], ...] = ()
    plan: Plan | None = None
    measure: bool = True

    def __post_init__(self) -> None:
        check_kinds(self)
        if wrong := [one for one in self.remedies if not callable(one)]:
            raise InputError("remedies", repr(wrong[0]), "remedies such as fgm(0.5), not their texts")
        given = [name for name in ("steps", "epochs", "seconds") if getattr(self, name) is not None]
        if len(given) > 1:
            raise InputError(f"{' and '.join(given)}: found {len(given)} lengths of training, expected one of them")
        for name in ("effective_batch", "steps", "epochs", "seconds", "learning_rate", "save_steps", *_LOOKS):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise InputError(f"{name}={value}: expected a finite number above 0")
        if self.keep not in KEPT:
            raise InputError(f"keep={self.keep!r}: expected one of {', '.join(KEPT)}")
        if self.schedule is not None and self.schedule not in SCHEDULES:
            raise InputError(f"schedule={self.schedule!r}: expected one of {', '.join(SCHEDULES)}")
        for name in ("warmup_steps", "seed", "weight_decay", "max_grad_norm"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 2**32:
                raise InputError(f"{name}={value}: expected 0 or more, below 2**32")
        if self.curriculum is not None:
            from jieyue.data.curriculum import Curriculum

            Curriculum.parse(self.curriculum)
        from jieyue.hf.optimizers import optimizer_named
        from jieyue.hf.presets import STARTS
        from jieyue.planning.setting import AUTO, dtype_named

        if self.start is not None and self.start not in STARTS:
            raise InputError(f"start={self.start!r}", repr(self.start), f"one of {', '.join(STARTS)}")
        if self.in_backward and self.optimizer == "adamw-8bit":
            raise InputError("in_backward", "optimizer='adamw-8bit'", "one of torch's or ours, such as adafactor")
        check_log(self.log)
        if self.optimizer != AUTO:
            optimizer_named(self.optimizer)
        if self.dtype != AUTO:
            dtype_named(self.dtype)

    def to_dict(self) -> Facts:
        """JSON values; remedies by their text."""
        values = {
            one.name: getattr(self, one.name) for one in fields(self) if one.name not in ("plan", "log", "measure")
        }
        return values | {"remedies": [str(remedy) for remedy in self.remedies]}

    @property
    def chooses(self) -> bool:
        """Whether the examples set aside decide which weights stay, or when training stops."""
        return self.keep == "best" or self.patience is not None

    @classmethod
    def known(cls, values: Facts) -> Facts:
        """``values``: what ``to_dict`` gave, perhaps in an earlier version: fields that were not there then have their defaults."""
        return cls().to_dict() | dict(values)

    def remedied(self, objective: Objective) -> Objective:
        """The objective that is trained: the task's own, inside every remedy."""
        for remedy in self.remedies:
            objective = remedy(objective)
        return objective
