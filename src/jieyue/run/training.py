"""``train``: plan → train → evaluate → report, for a recipe, under a budget. One call, one folder, every number in it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy
import torch

from jieyue import __version__
from jieyue.budget import Budget, Plan, format_bytes, format_seconds
from jieyue.data.batch import collate, effective_batches
from jieyue.errors import InputError
from jieyue.recipes import read as reading

from .sources import Sources, open_sources
from .watch import SILENT, Watch

__all__ = ["Training", "train"]


@dataclass(frozen=True, kw_only=True)
class Training:
    """How to train; every default is a real value, None means "decide for me" and the report says what was decided.

    Exactly one of ``steps``, ``epochs`` and ``seconds``. ``learning_rate``: None = 1e-3 for a preset, 3e-5 for a checkpoint.
    ``start``: how a preset's weights begin. ``curriculum``: ((share of the steps, hardest passage in sentences), …), for
    presets; ``()`` = none.
    """

    effective_batch: int = 32
    steps: int | None = None
    epochs: float | None = None
    seconds: float | None = None
    learning_rate: float | None = None
    warmup: int = 100
    seed: int = 0
    start: str = "orthogonal-copy"
    curriculum: tuple[tuple[float, float], ...] | None = None
    checkpointing: bool | None = None
    save_steps: int = 200
    questions: int | None = None
