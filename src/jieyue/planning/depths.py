"""What is known of a deep model by a shallower one, as values: which layers stand for which, and what was found of them (``alike``)."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy
from torch import nn

__all__ = ["Depth", "Finish"]


class Finish(NamedTuple):
    """``changes`` [T, 3]: live bytes (all, gradients, activations) after each operator that follows the last piece, above those before;
    ``held``: bytes of weights and of the optimizer's state."""

    changes: numpy.ndarray
    held: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Depth:
    """A model of many layers, of which a few may tell what all cost.

    ``layers``: of the whole model; ``period``: after how many the kinds of layer repeat; ``shallow``: of the model that is traced
    (``fewest_layers``); ``build(layers)``: the model of so many, the first of them; ``kind``: what tells optimizers of one model
    apart; ``told``: the step that it was made for, as ``alike`` knows it: of another one nothing is known. ``proven``: what was
    found of that step's updates; ``alike``, ``finishes``: of the model, shared by all its steps.
    """

    layers: int
    period: int
    shallow: int
    build: Callable[[int], nn.Module]
    kind: Hashable = ()
    told: tuple[Hashable, ...] = ()
    alike: dict[str, bool] = field(default_factory=dict, compare=False, repr=False)
    proven: dict[tuple[bool, bool], bool] = field(default_factory=dict, compare=False, repr=False)
    finishes: dict[Hashable, Finish] = field(default_factory=dict, compare=False, repr=False)
