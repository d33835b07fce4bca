"""Which layers stay full: chosen greedily by the joint price of a choice, since the prices of single layers do not add up.

From all layers full, one layer after the other becomes sparse: in each round the few that were cheapest when they were last tried
are tried together with those that are sparse already, and the cheapest stays. The price is any function of the set of full layers.
Key-value heads, numbered through all layers, are chosen in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from jieyue.errors import InputError

from .layer_options import FullLayers

__all__ = ["Choice", "check_full", "choose_layers", "interleaved", "most_prices"]

Price = Callable[[frozenset[int]], float]


@dataclass(frozen=True)
class Choice:
    """``full``: the layers that stay full, ascending. ``path``: (number of full layers, joint price) of every round, from all full;
    ``order``: the layers in the order in which they became sparse; ``alone``: layer -> price of it alone being sparse;
    ``tried``: how many prices were asked for. Without path, order and prices where the layers were told and not chosen.
    ``estimates``: what was taken in place of the prices alone, to order what is tried; ``alone`` is then empty."""

    full: tuple[int, ...]
    path: tuple[tuple[int, float], ...]
    order: tuple[int, ...]
    alone: dict[int, float]
    tried: int
    estimates: Mapping[int, float] = field(default_factory=dict)


def choose_layers(
    price: Price,
    layers: Sequence[int],
    wanted: FullLayers,
    *,
    candidates: int = 4,
    noun: str = "layer",
    estimates: Mapping[int, float] | None = None,
    kept: Callable[[frozenset[int]], None] = lambda full: None,
) -> Choice:
    """Greedy choice among ``layers``. ``price(full)``: of these layers full and the others sparse, 0 for all of them full.

    With ``wanted.most`` it stops at the first round whose cheapest choice costs more; with ``wanted.count`` when so many are left;
    ``wanted.layers`` are the choice, and no price is asked. ``kept(full)``: told of the choice that later ones differ from.
    ``estimates``: of what each costs alone, in place of asking for those prices; they only order what is tried first.
    ``noun``: what is chosen, for messages. ``InputError`` where other or more are wanted than there are. Cost: a price a layer, then
    up to ``candidates`` a round.
    """
    check_full(wanted, layers, noun)
    if candidates < 1:
        raise InputError("candidates", str(candidates), "at least 1")
    if wanted.layers is not None:
        return Choice(wanted.layers, (), (), {}, 0)
    whole = frozenset(layers)
    kept(whole)
    if wanted.count == len(layers):
        return Choice(tuple(sorted(whole)), ((len(layers), 0.0),), (), {}, 0)
    alone = {layer: price(whole - {layer}) for layer in layers} if estimates is None else {}
    tried, full, reached = len(alone), whole, 0.0
    gain = dict(alone if estimates is None else estimates)  # what each layer added when it was last tried
    path, order = [(len(whole), 0.0)], list[int]()
    while len(full) > (wanted.count or 0):
        some = sorted(full, key=lambda layer: (gain[layer], layer))[:candidates]
        known = full == whole and estimates is None
        prices = {layer: alone[layer] if known else price(full - {layer}) for layer in some}
        tried += 0 if known else len(some)
        best = min(prices, key=lambda layer: (prices[layer], layer))
        if wanted.most is not None and prices[best] > wanted.most:
            break
        gain |= {layer: own - reached for layer, own in prices.items()}
        full, reached = full - {best}, prices[best]
        order.append(best)
        kept(full)
        path.append((len(full), reached))
    return Choice(tuple(sorted(full)), tuple(path), tuple(order), alone, tried, estimates or {})


def most_prices(layers: int, count: int, candidates: int, *, estimated: bool = False) -> int:
    """For how many prices ``choose_layers`` asks at most where ``count`` of so many layers are to stay full; ``estimated``: it is
    given estimates in place of the prices alone.

    >>> most_prices(6, 2, 4), most_prices(3, 0, 9)
    (17, 6)
    """
    if count == layers:
        return 0
    first = layers if estimated else layers - 1  # without estimates the prices alone are the first round
    rounds = sum(min(candidates, left) for left in range(first, count, -1))
    return rounds if estimated else layers + rounds


def check_full(wanted: FullLayers, layers: Sequence[int], noun: str = "layer") -> None:
    """``InputError`` where other or more layers are to stay full than these, which can be sparse."""
    if others := sorted(set(wanted.layers or ()) - set(layers)):
        found = f"layer{'s' if len(others) > 1 else ''} {', '.join(map(str, others))}"
        allowed = f"some of {FullLayers(layers=tuple(layers))}, the layers that can be sparse"
        raise InputError("full_layers", found, allowed, "count from 0, and leave out layers with a window")
    if wanted.count is not None and wanted.count > len(layers):
        allowed = f"at most {len(layers)}, the {noun}s that can be sparse"
        raise InputError(f"full_{noun}s", str(wanted.count), allowed)


def interleaved(layers: Sequence[int], count: int) -> tuple[int, ...]:
    """``count`` of the layers, evenly spaced: what a choice is held against.

    >>> interleaved(range(6), 3), interleaved(range(5), 2)
    ((1, 3, 5), (1, 3))
    """
    return tuple(layers[int((place + 0.5) * len(layers) / count)] for place in range(count))
