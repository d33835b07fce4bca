"""What an update of a deep model costs, told by a shallower one: layers that are alike come and go with the same bytes.

The shallower model has four blocks of layers (a block: as many as it takes until the kinds of layer repeat, the last one with what
is left over). Its update is traced and cut where each block's forward and backward pass begins:

    start | F₀ | F₁ | F₂ | F₃ and head | B₃ | B₂ | B₁ | B₀ | … further pieces … | division, clipping, optimizer

Every operator leaves the live bytes changed by so much. Where F₁ = F₂ and B₂ = B₁ change by change, further blocks between them
repeat these, and the peak of the deep model is that of the longer sequence, byte for byte; a model of one block more is traced as
well and must be so, level by level. What follows the last piece looks at
all weights together: it is traced by itself, with all layers, and the same of the shallower one must be what its whole update
shows. Modules, weights and numbers of each layer of the deep model are held against the shallower one's. Where anything is not so
there is no answer, and the whole model is traced (``prediction``).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Hashable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TypeAlias

import numpy
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.distributed._tools.mem_tracker import _MemRefType, _State

from jieyue.budget import Cost
from jieyue.errors import InputError
from jieyue.hf.tracing import fakes_as_real
from jieyue.training.checkpointing import layers_of
from jieyue.training.in_backward import Folding

from .depths import Depth, Finish
from .fake_model import fake_model
from .prediction import Tracker, TrainingStep, finish, live_parts, trace, with_state

__all__ = ["fewest_layers", "predict_by_depth", "told_by"]

BLOCKS = 4  # the first and the last one differ from those between, of which two show that they are equal
_CPU = torch.device("cpu")


def fewest_layers(layers: int, period: int) -> int:
    """How many layers the shallower model has: four periods, and as many as the whole model has beyond whole ones.

    >>> fewest_layers(30, 1), fewest_layers(31, 2), fewest_layers(26, 6)
    (4, 9, 26)
    """
    return BLOCKS * period + layers % period


def predict_by_depth(
    step: TrainingStep, *, effective_batch: int, micro_batch: int, checkpointing: bool = False
) -> Cost | None:
    """``predict`` of the whole model by one trace of a shallower one, the same to the byte; None where that is not certain.

    Cost: a trace of ``depth.shallow`` layers; once for all updates of a setting, the whole model without weights and its
    optimizer's step.
    """
    depth = step.depth
    if depth is None or step.device != "cpu" or depth.told != _told(step):
        return None
    if "" not in depth.alike:
        depth.alike[""] = _is_alike(depth)
    if not depth.alike[""]:
        return None
    tracker = _Blocks()
    few = replace(step, build_model=partial(depth.build, depth.shallow), depth=None)
    try:
        model, optimizer, waiting = trace(few, effective_batch, micro_batch, checkpointing, tracker)
    except (InputError, DynamicOutputShapeException, DataDependentOutputException):
        return None  # the whole model's trace says what is wrong
    named = {id(parameter): name for name, parameter in model.named_parameters()}
    names = tuple(named[number] for number in tracker.given)
    pieces = tracker.repeated(depth)
    if pieces is None or not _is_proven(few, depth, tracker, (effective_batch, micro_batch, checkpointing)):
        return None
    if tuple(_deep_names(names, model, depth, depth.shallow)) != names:
        return None
    own = _finished(step, depth, depth.shallow, names)
    if not numpy.array_equal(own.changes, tracker.finished) or own.held != live_parts(model, optimizer):
        return None
    whole = _finished(step, depth, depth.layers, names)
    pieces[:, 0] += sum(whole.held) - sum(own.held)
    levels = numpy.concatenate([pieces, pieces[-1] + whole.changes])
    total, gradient, activation = (int(part) for part in levels[int(levels[:, 0].argmax())])
    weight, state = whole.held
    total += waiting
    rest = total - weight - gradient - state - activation
    return Cost(
        peak_bytes=total,
        weight_bytes=weight,
        gradient_bytes=gradient,
        optimizer_bytes=state,
        activation_bytes=activation,
        temporary_bytes=rest,
    )


def told_by(step: TrainingStep, depth: Depth) -> TrainingStep:
    """The step, which the depth may tell."""
    return replace(step, depth=replace(depth, told=_told(step), proven={}))


def _told(step: TrainingStep) -> tuple[Hashable, ...]:
    """What a depth must not be used without."""
    return (step.build_model, step.make_optimizer, step.weigh, step.max_grad_norm, step.in_backward)


def _is_proven(few: TrainingStep, depth: Depth, tracker: _Blocks, asked: tuple[int, int, bool]) -> bool:
    """Whether the update with a block more is, level by level, what the shallower model says of it: what grows with the number of
    layers and comes or goes at once (weights that autocast keeps) is seen by that alone. Traced once for one piece, once for several.
    """
    effective, micro, checkpointing = asked
    key = (checkpointing, effective > micro)
    if key not in depth.proven:
        more, another = depth.shallow + depth.period, _Blocks()
        trace(replace(few, build_model=partial(depth.build, more)), effective, micro, checkpointing, another)
        told = tracker.repeated(replace(depth, layers=more))
        found = numpy.array(another.levels[: another.end + 1], dtype=numpy.int64)
        if told is not None:
            told[:, 0] += found[0, 0] - told[0, 0]
        depth.proven[key] = told is not None and numpy.array_equal(told, found)
    return depth.proven[key]


class _Blocks(Tracker):
    """Notes the live bytes after every operator, and where each layer's passes begin."""

    def __init__(self) -> None:
        super().__init__()
        self.levels: list[tuple[int, int, int]] = []
        self.cuts: list[tuple[str, int, int]] = []  # (pass, layer, operators before it)
        self.first: list[int] = []  # of each layer, the number that autograd gives its next node
        self.last = 0
        self.given: list[int] = []  # weights that were given a gradient; folded ones in the order in which it came
        self.end = 0
        self.is_lost = False
        self._model: nn.Module | None = None

    def level(self) -> tuple[int, int, int]:
        """Live bytes now: all, gradients, activations."""
        parts = self._curr_mem_snap.get(_CPU, {})
        return parts.get("Total", 0), parts.get(_MemRefType.GRAD, 0), parts.get(_MemRefType.ACT, 0)

    def watch(self, model: nn.Module) -> None:
        self._model = model
        self.levels.append(self.level())
        for layer in layers_of(model):
            layer.register_forward_pre_hook(self._before)
            layer.register_forward_hook(self._after)

    def _before(self, layer: nn.Module, _: tuple[torch.Tensor, ...]) -> None:
        if torch._C._current_graph_task_id() != -1:
            return  # it runs again in the backward pass
        if not self.cuts or self.cuts[-1][0] == "backward":
            self.first = []
        self.cuts.append(("forward", len(self.first), len(self.levels)))
        self.first.append(torch._C._autograd._get_sequence_nr())

    def _after(self, *_: nn.Module | torch.Tensor | tuple[torch.Tensor, ...]) -> None:
        if torch._C._current_graph_task_id() == -1:
            self.last = torch._C._autograd._get_sequence_nr()

    def start(self) -> None:
        """The last piece is done."""
        self.end = len(self.levels)
        self.levels.append(self.level())

    def pieces_done(self, folding: Folding | None) -> None:
        assert self._model is not None
        self.start()
        if folding is not None:
            self.given = [id(parameter) for parameter in folding.touched]
        else:
            self.given = [id(parameter) for parameter in self._model.parameters() if parameter.grad is not None]

    def _update_peak_stats(self, peak_state: _State) -> None:
        if torch._C._current_graph_task_id() != -1 and (node := torch._C._current_autograd_node()) is not None:
            self._at(int(node._sequence_nr()))
        self.levels.append(self.level())
        super()._update_peak_stats(peak_state)

    def _at(self, number: int) -> None:
        """A node of the backward pass runs: it may be the first of its layer."""
        if not self.first or not self.first[0] <= number < self.last:
            return  # of what stands around the layers, or the sum of a weight's gradients
        layer = bisect_right(self.first, number) - 1
        before = self.cuts[-1]
        if before[0] == "forward" or layer < before[1]:
            self.cuts.append(("backward", layer, len(self.levels)))
        elif layer > before[1]:
            self.is_lost = True  # layers do not run one after the other

    @property
    def finished(self) -> numpy.ndarray:
        """Changes after the last piece, as ``Finish`` has them."""
        levels = numpy.array(self.levels[self.end :], dtype=numpy.int64)
        return levels[1:] - levels[:1]

    def repeated(self, depth: Depth) -> numpy.ndarray | None:
        """[T, 3]: the levels until the last piece is done, with the blocks between repeated for the whole model; None where they are
        not equal, or layers do not come one after the other."""
        layers, period = depth.shallow, depth.period
        passes = [*(("forward", n) for n in range(layers)), *(("backward", n) for n in reversed(range(layers)))]
        if self.is_lost or len(self.cuts) % len(passes):
            return None
        levels = numpy.array(self.levels[: self.end + 1], dtype=numpy.int64)
        changes = numpy.diff(levels, axis=0, prepend=numpy.zeros((1, 3), dtype=numpy.int64))
        more, done, parts = (depth.layers - layers) // period, 0, list[numpy.ndarray]()
        for at in range(0, len(self.cuts), len(passes)):
            cuts = self.cuts[at : at + len(passes)]
            if [cut[:2] for cut in cuts] != passes:
                return None
            place = {cut[:2]: cut[2] for cut in cuts}
            for name, edges in (("forward", (1, 2, 3)), ("backward", (3, 2, 1))):
                ends = [block * period - (name == "backward") for block in edges]
                found = _repeating(changes, *(place[name, layer] for layer in ends))
                if found is None:
                    return None
                start, middle = found
                parts += [changes[done:middle], *[changes[start:middle]] * more]
                done = middle
        return numpy.cumsum(numpy.concatenate([*parts, changes[done:]]), axis=0)


def _repeating(changes: numpy.ndarray, start: int, middle: int, stop: int) -> tuple[int, int] | None:
    """(start, middle) of a block that the next one repeats; None where it does not. What the layer before has left goes with a block's
    first operator, so that a first layer of other types (float32 under autocast) is seen there: then blocks begin after it."""
    for late in (0, 1):
        if numpy.array_equal(changes[start + late : middle + late], changes[middle + late : stop + late]):
            return start + late, middle + late
    return None


def _finished(step: TrainingStep, depth: Depth, layers: int, names: tuple[str, ...]) -> Finish:
    """What follows the last piece in the model of so many layers; ``names``: the weights with a gradient, as the shallower model has
    them. Traced once for each kind of optimizer."""
    key = (depth.kind, layers, names)
    if key not in depth.finishes:
        depth.finishes[key] = _finish_alone(step, depth, layers, names)
    return depth.finishes[key]


def _finish_alone(step: TrainingStep, depth: Depth, layers: int, names: tuple[str, ...]) -> Finish:
    mode, tracker = FakeTensorMode(), _Blocks()
    with fakes_as_real(), ExitStack() as stack:
        model = fake_model(mode, partial(depth.build, layers), _CPU).train()
        own = dict(model.named_parameters())
        given = [own[name] for name in _deep_names(names, model, depth, layers)]
        stack.enter_context(mode)
        optimizer = with_state(step, model)
        tracker.track_external(model, optimizer)
        if step.weigh is None and not step.in_backward:
            for parameter in given:
                parameter.grad = torch.empty_like(parameter)
                tracker._update_and_maybe_create_winfos(parameter.grad, _MemRefType.GRAD)
        stack.enter_context(tracker)
        folding = None if step.weigh is None else stack.enter_context(Folding(model, optimizer, 1.0))
        for parameter in given:
            if folding is not None:
                folding.begin(parameter)
        tracker.start()
        if not step.in_backward:
            finish(step, [p for p in model.parameters() if p.requires_grad], optimizer, folding)
    return Finish(tracker.finished, live_parts(model, optimizer))


def _deep_names(names: Iterable[str], model: nn.Module, depth: Depth, layers: int) -> Iterator[str]:
    """The weights of this model of ``layers`` layers for which these of the shallower one stand, in the same order: all of a layer come
    together, layer after layer, upwards or downwards."""
    named = {id(module): name for name, module in model.named_modules()}
    inside = [f"{named[id(layer)]}." for layer in layers_of(model)]
    of_layer: dict[int, list[str]] = {}
    groups: list[tuple[bool, list[str]]] = []
    for name in names:
        layer = next((number for number, start in enumerate(inside) if name.startswith(start)), None)
        if layer is not None:
            of_layer.setdefault(layer, []).append(name.removeprefix(inside[layer]))
        if not groups or groups[-1][0] != (layer is not None):
            groups.append((layer is not None, []))
        groups[-1][1].append(name)
    downwards = list(of_layer) == sorted(of_layer, reverse=True)
    for is_layers, own in groups:
        if not is_layers:
            yield from own
            continue
        for layer in reversed(range(len(inside))) if downwards else range(len(inside)):
            yield from (f"{inside[layer]}{name}" for name in of_layer.get(_shallow_layer(layer, depth, layers), ()))


def _shallow_layer(layer: int, depth: Depth, layers: int) -> int:
    """The layer of the shallower model that stands for this one: by its place from the end in the last block, else in its period."""
    last = depth.shallow - (BLOCKS - 1) * depth.period
    if layer >= layers - last:
        return layer - layers + depth.shallow
    return layer if layer < depth.period else depth.period + layer % depth.period


def _is_alike(depth: Depth) -> bool:
    """Whether every layer of the whole model has the modules, weights and numbers of the shallower one's that stands for it, and what
    stands around the layers is the same."""
    with torch.device("meta"):
        whole, few = depth.build(depth.layers), depth.build(depth.shallow)
    every, some = layers_of(whole), layers_of(few)
    if len(every) == len(some) == 1:  # one layer that runs again and again (ALBERT)
        pairs = [(0, 0)]
    elif (len(every), len(some)) == (depth.layers, depth.shallow):
        pairs = [(layer, _shallow_layer(layer, depth, depth.layers)) for layer in range(depth.layers)]
    else:
        return False
    inside = [{id(one) for layer in layers for one in layer.modules()} for layers in (every, some)]
    around = [
        [(name, _facts(one)) for name, one in model.named_modules() if id(one) not in own]
        for model, own in zip((whole, few), inside, strict=True)
    ]
    return around[0] == around[1] and all(_is_same(every[a], some[b], a, b) for a, b in pairs)


def _is_same(one: nn.Module, other: nn.Module, layer: int, stands_for: int) -> bool:
    """Module by module; a number may differ where it is the layer's own."""
    for (name, own), (again, twin) in zip(one.named_modules(), other.named_modules(), strict=False):
        (kind, numbers, tensors), (other_kind, other_numbers, other_tensors) = _facts(own), _facts(twin)
        if (name, kind, tensors) != (again, other_kind, other_tensors) or numbers.keys() != other_numbers.keys():
            return False
        for key, value in numbers.items():
            if value != other_numbers[key] and (value, other_numbers[key]) != (layer, stands_for):
                return False
    return len(list(one.modules())) == len(list(other.modules()))


_Facts: TypeAlias = tuple[type, dict[str, float | str | None], list[tuple[str, tuple[int, ...], torch.dtype, bool]]]


def _facts(module: nn.Module) -> _Facts:
    """Its class, its plain values by name, and its own weights and buffers."""
    plain = {
        name: value for name, value in vars(module).items() if value is None or isinstance(value, int | float | str)
    }
    own = [*module._parameters.items(), *module._buffers.items()]
    return type(module), plain, [(name, tuple(t.shape), t.dtype, t.requires_grad) for name, t in _there(own)]


def _there(named: list[tuple[str, torch.Tensor | None]]) -> Iterator[tuple[str, torch.Tensor]]:
    return ((name, one) for name, one in named if one is not None)
