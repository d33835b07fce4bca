"""The masked language model that several cells or arms begin from: trained once, by the first process that needs it."""

from __future__ import annotations

import fcntl
from pathlib import Path

from jieyue.budget import Budget
from jieyue.record import RECORD
from jieyue.report import write_whole
from jieyue.run.comparison import train_on
from jieyue.run.config import TrainingConfig
from jieyue.run.fit import store
from jieyue.tasks import RunConfig
from jieyue.tasks.mlm.settings import MaskSettings
from jieyue.tasks.table import task

__all__ = ["masked_lm"]


def masked_lm(
    folder: Path,
    text: str = "",
    *,
    updates: int,
    model: str = "tiny",
    max_tokens: int = 128,
    learning_rate: float = 1e-3,
    seed: int = 0,
    limit: int | None = None,
) -> Path:
    """``folder/model``, a masked LM of these lines (none: the corpus that ships), found again where it is finished.

    Other processes wait for the one that trains; an interrupted training goes on from its checkpoint.
    """
    done = folder / "model"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (done / RECORD).is_file():
            data = [write_whole(folder / "texts.txt", text)] if text else []
            settings = MaskSettings(max_tokens=max_tokens, pseudo_rows=0, seed=seed)
            config = RunConfig(model=model, data=data, limit=limit, settings=settings)
            training = TrainingConfig(steps=updates, learning_rate=learning_rate, seed=seed)
            arm = train_on(task("mlm"), config, training, folder / "training", Budget.parse("4GiB"))
            store(arm.trained, arm.prepared, arm.prepared.settings, done, {})
    return done
