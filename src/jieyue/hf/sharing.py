"""One block applied many times becomes as many blocks, all equal at that moment; and back, by the mean.

    y = f(…f(f(x; w); w)…; w)   →   f(…f(f(x; w₁); w₂)…; w_L),  w_t = w:    same values,  ∂y/∂w = Σ_t ∂y/∂w_t

The time of a pass is the same; weights, gradients and the optimizer's states are L times as many. An optimizer that exists
already is told (its states are copied with the weights), and one that is not named is found and refused: it would go on
training the first copy alone.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from jieyue.errors import InputError

__all__ = ["Turns", "average", "merge", "reshare_modules", "split", "unshare_modules"]


def unshare_modules(model: nn.Module, path: str, times: int | None = None, *, optimizer: Any = None) -> nn.Module:
    """Gives every use of the shared block at ``path`` a copy of its own, in place; returns the model.

    Two ways of sharing are known. A block that stands at several places (``nn.ModuleList([block] * 6)``, path "layers" or
    "layers.0"): every place but the first gets a copy. A block that stands once and is called in a loop: say how many
    ``times`` its owner calls it in one forward pass; call t then goes to copy t (``Turns``).

    ``optimizer``: one that holds the block's weights; their states are copied. Cost: times − 1 copies of the block. A model
    that was changed so is loaded by calling this first, ``load_state_dict`` after.
    Refuses a path that names no module, a block used once, an optimizer that is not named, waiting gradients.
    """
    asked = f"unshare_modules(model, {path!r})"
    named = dict(model.named_modules(remove_duplicate=False))
    if path not in named or not path:
        raise InputError(asked, "no such module", f"one of {_some(name for name in named if name)}")
    block = named[path]
    if isinstance(block, nn.ModuleList):
        repeated = {id(child): child for child in block if sum(other is child for other in block) > 1}
        if len(repeated) != 1:
            found = f"{len(block)} modules, {len(repeated)} of them at several places"
            raise InputError(asked, found, "a list that holds one module at several places")
        block = next(iter(repeated.values()))
    places = _places(model, block)
    if len(places) > 1 and times not in (None, len(places)):
        raise InputError(f"{asked[:-1]}, times={times})", f"{len(places)} places", "as many times, or None")
    if len(places) == 1 and (times is None or times < 2):
        found = f"a {type(block).__name__} that stands once"
        do = "say how many times its owner calls it in one forward pass: times=..."
        raise InputError(asked, found, "a module at several places, or times of 2 or more", do)

    def put(copies: list[list[nn.Module]]) -> None:
        if len(places) > 1:
            for (parent, name), one in zip(places, copies[0], strict=True):
                parent._modules[name] = one
            return
        turns = Turns(copies[0])
        places[0][0]._modules[places[0][1]] = turns
        _owner(named, path).register_forward_pre_hook(turns.begin)

    split(model, [block], times or len(places), put, optimizer=optimizer, asked=asked)
    return model


def reshare_modules(model: nn.Module, path: str, *, optimizer: Any = None) -> nn.Module:
    """The way back from ``unshare_modules``: one block again, the mean of the copies; exact while they are equal.

    ``optimizer``: as for ``merge``.
    """
    asked = f"reshare_modules(model, {path!r})"
    named = dict(model.named_modules(remove_duplicate=False))
    found = named.get(path)
    if isinstance(found, Turns):
        for key, hook in list(_owner(named, path)._forward_pre_hooks.items()):
            if getattr(hook, "__self__", None) is found:
                del _owner(named, path)._forward_pre_hooks[key]
        ((parent, name),) = _places(model, found)
        parent._modules[name] = merge([list(found.copies)], optimizer, asked)[0]
    elif isinstance(found, nn.ModuleList) and len(found) > 1:
        one = merge([list(found)], optimizer, asked)[0]
        for name in found._modules:
            found._modules[name] = one
    else:
        expected = "the path of a list of copies, or the one that unshare_modules was given"
        raise InputError(asked, type(found).__name__, expected)
    return model


class Turns(nn.Module):
    """Copies of a block that its owner calls in turn: call t of a forward pass goes to copy t, fewer calls are allowed.

    A call too many raises: running the block a second time for activation checkpointing would meet another copy.
    """

    def __init__(self, copies: Sequence[nn.Module]) -> None:
        super().__init__()
        self.copies = nn.ModuleList(copies)
        self.turn = 0

    def begin(self, *_: Any) -> None:
        """Before the owner's forward pass."""
        self.turn = 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.turn == len(self.copies):
            raise InputError(
                f"{type(self.copies[0]).__name__}: found a call more than the {self.turn} that it was unshared for, in one "
                "forward pass of its owner; expected times to be the number of calls, and no checkpointing of the block alone"
            )
        self.turn += 1
        return self.copies[self.turn - 1](*args, **kwargs)


def split(
    model: nn.Module,
    blocks: Sequence[nn.Module],
    times: int,
    put: Callable[[list[list[nn.Module]]], None],
    *,
    optimizer: Any,
    asked: str,
) -> None:
    """Each block becomes itself and times − 1 deep copies, which ``put`` sets into the model; ``optimizer`` is told.

    Copies keep their configuration in common with the model. See ``unshare_modules`` for what is refused.
    """
    shared = [p for block in blocks for p in block.parameters()]
    inner = _innermost(optimizer)
    _refuse(model, shared, inner, asked)
    for parameter in shared:
        parameter.grad = None
    before = {id(p): place for place, p in enumerate(model.parameters())}
    copies = [[block, *(_copied(model, block) for _ in range(times - 1))] for block in blocks]
    put(copies)
    if inner is not None:
        later = {
            p: [dict(one.named_parameters())[name] for one in others]
            for block, *others in copies
            for name, p in block.named_parameters()
        }
        _tell_optimizer(inner, before, {id(p): place for place, p in enumerate(model.parameters())}, later)


def _copied(model: nn.Module, block: nn.Module) -> nn.Module:
    configs = [vars(module)["config"] for module in (model, *block.modules()) if "config" in vars(module)]
    return copy.deepcopy(block, {id(config): config for config in configs})


@torch.no_grad()
def average(copies: Sequence[nn.Module]) -> nn.Module:
    """The first of the copies, its weights the mean of all: w₁ + mean(w_t − w₁), so that equal copies give themselves."""
    first = copies[0]
    others = [dict(one.named_parameters()) for one in copies[1:]]
    for name, parameter in first.named_parameters():
        if any(name not in other or other[name].shape != parameter.shape for other in others):
            raise InputError("reshare", f"{name} not in every copy", "copies of one block")
        apart = torch.zeros_like(parameter)
        for other in others:
            apart += other[name] - parameter
        parameter.add_(apart / len(copies))
        parameter.grad = None
    return first


def merge(groups: Sequence[Sequence[nn.Module]], optimizer: Any, asked: str) -> list[nn.Module]:
    """``average`` of each group of copies, and ``optimizer`` told: it keeps the first ones, with the mean of all their states.

    An optimizer that holds the copies and is not named is refused: it would go on with the moments of the first copy alone,
    and with weights that are in no model. So is LBFGS.
    """
    inner = _innermost(optimizer)
    _refuse_optimizers([p for copies in groups for one in copies for p in one.parameters()], inner, asked)
    named = [[dict(one.named_parameters()) for one in copies] for copies in groups]
    merged = [average(copies) for copies in groups]
    if inner is not None:
        for first, *others in named:
            _merge_states(inner, first, others)
    return merged


def _merge_states(
    optimizer: torch.optim.Optimizer, first: dict[str, nn.Parameter], others: list[dict[str, nn.Parameter]]
) -> None:
    for name, parameter in first.items():
        states = [optimizer.state.pop(one[name]) for one in (first, *others) if one[name] in optimizer.state]
        if len(states) == len(others) + 1:
            optimizer.state[parameter] = {key: _mean([state[key] for state in states]) for key in states[0]}
    gone = {id(p) for one in others for p in one.values()}
    for group in optimizer.param_groups:
        group["params"][:] = [p for p in group["params"] if id(p) not in gone]


def _mean(values: list[Any]) -> Any:
    """v₁ + mean(v_t − v₁) of tensors, so that equal ones give themselves; of anything else the first."""
    first = values[0]
    if not isinstance(first, Tensor) or not first.is_floating_point():
        return first
    apart = torch.zeros_like(first)
    for value in values[1:]:
        apart += value - first
    return first + apart / len(values)


def _places(model: nn.Module, block: nn.Module) -> list[tuple[nn.Module, str]]:
    """(parent, name) of every place where the block stands, in the order of the module tree."""
    return [(parent, name) for parent in model.modules() for name, child in parent._modules.items() if child is block]


def _owner(named: dict[str, nn.Module], path: str) -> nn.Module:
    """The nearest module above that has a forward pass of its own (lists and dictionaries have none)."""
    while isinstance(named[path := path.rpartition(".")[0]], nn.ModuleList | nn.ModuleDict):
        pass
    return named[path]


def _refuse(model: nn.Module, shared: list[nn.Parameter], optimizer: Any, asked: str) -> None:
    if isinstance(model, nn.parallel.DistributedDataParallel) or any(type(p).__name__ == "DTensor" for p in shared):
        raise InputError(asked, "a model that is distributed already", "the model before it is wrapped")
    if any(p.grad is not None and (p.grad.is_meta or bool(p.grad.any())) for p in shared):
        found = "gradients waiting in the shared block, sums over its uses that cannot be taken apart"
        raise InputError(asked, found, "none", "step, or call zero_grad(), first")
    if any(p._backward_hooks or getattr(p, "_post_accumulate_grad_hooks", None) for p in shared):
        raise InputError(asked, "hooks on the shared weights, which copies would lack", "weights without hooks")
    _refuse_optimizers(shared, optimizer, asked)


def _refuse_optimizers(weights: list[nn.Parameter], optimizer: Any, asked: str) -> None:
    """LBFGS, and every optimizer that holds one of the weights and is not the named one."""
    if isinstance(optimizer, torch.optim.LBFGS):
        raise InputError(asked, "LBFGS, whose state is one for all weights", "a state for each weight (AdamW, SGD)")
    others = [other for other in _optimizers_of(weights) if other is not optimizer]
    if others:
        gc.collect()  # a forgotten optimizer lives on until then where a schedule points back to it
        others = [other for other in _optimizers_of(weights) if other is not optimizer]
    if others:
        found = f"a {type(others[0]).__name__} that holds the weights and would train the first copy alone"
        raise InputError(asked, found, "optimizer=that optimizer", "or make it afterwards")


def _optimizers_of(parameters: list[nn.Parameter]) -> Iterator[torch.optim.Optimizer]:
    """Every optimizer in this process that holds one of them."""
    wanted = set(map(id, parameters))
    for candidate in gc.get_objects():
        if issubclass(type(candidate), torch.optim.Optimizer):
            inner = _innermost(candidate)
            if inner is not None and any(id(p) in wanted for group in inner.param_groups for p in group["params"]):
                yield inner


def _innermost(optimizer: Any) -> torch.optim.Optimizer | None:
    """The optimizer inside wrappers that keep it as ``optimizer`` (accelerate's, ours)."""
    while isinstance(getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = optimizer.optimizer
    if optimizer is not None and not (
        isinstance(optimizer, torch.optim.Optimizer) and "param_groups" in vars(optimizer)
    ):
        raise InputError("optimizer", type(optimizer).__name__, "a torch.optim.Optimizer, or a wrapper of one")
    return optimizer


def _tell_optimizer(
    optimizer: torch.optim.Optimizer,
    before: dict[int, int],
    after: dict[int, int],
    later: dict[nn.Parameter, list[nn.Parameter]],
) -> None:
    """Each copy joins its original's group, with a copy of its state; a group in the model's order stays in it.

    So a state that is saved fits an optimizer made from the unshared model. ``before``, ``after``: id -> place in the model.
    """
    for group in optimizer.param_groups:
        places = [before.get(id(p), -1) for p in group["params"]]
        group["params"][:] = [one for p in group["params"] for one in (p, *later.get(p, ()))]
        if places == sorted(places):
            group["params"].sort(key=lambda p: after.get(id(p), -1))
        for parameter in list(group["params"]):
            for one in later.get(parameter, ()) if parameter in optimizer.state else ():
                optimizer.state[one] = _cloned(optimizer.state[parameter])


def _cloned(state: Any) -> Any:
    if isinstance(state, Tensor):
        return state.clone()
    return {key: _cloned(value) for key, value in state.items()} if isinstance(state, dict) else copy.deepcopy(state)


def _some(names: Iterator[str], most: int = 6) -> str:
    listed = list(names)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")
