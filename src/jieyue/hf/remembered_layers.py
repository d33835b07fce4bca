"""Outputs of a model's layers that are not computed again as long as nothing before them has changed.

Where one layer after the other is switched, a choice differs from the kept one from some layer on; all before it would give what
they gave. They return that, so a try costs the layers behind the switched one: half of them on average. Exact, not approximate.
A layer that is handed a dict may leave something in it for later ones (Gemma 3n, whose last layers read the keys of earlier ones), and
is computed each time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from torch import Tensor, nn

__all__ = ["RememberedLayers"]

Out = TypeVar("Out")
MOST_BYTES = 2**31


class RememberedLayers:
    """``setting``: a number for what each layer is now, in order; ``batch``: which of several inputs is read. ``keep`` says which
    setting is the one to remember. Memory: the outputs of all layers for all batches, at most ``MOST_BYTES``; what is beyond is
    computed anew."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self.layers, self.batch = layers, 0
        self.setting: tuple[int, ...] = ()
        self.computed = 0  # layers that ran
        self._kept: tuple[int, ...] = ()
        self._known: dict[tuple[int, int], tuple[tuple[int, ...], object]] = {}
        self._bytes = 0

    def keep(self) -> None:
        """The setting of now is what later ones differ from."""
        self._kept = self.setting

    @contextmanager
    def remembering(self) -> Iterator[None]:
        """Inside, the layers answer from memory where they can."""
        for number, layer in enumerate(self.layers):
            vars(layer)["forward"] = partial(self._called, number, layer.forward)
        try:
            yield
        finally:
            for layer in self.layers:
                vars(layer).pop("forward")
            self._known.clear()
            self._bytes = 0

    def _called(self, number: int, forward: Callable[..., Out], *given: Tensor, **named: Tensor) -> Out:
        key, now = (self.batch, number), self.setting[: number + 1]
        known = self._known.get(key)
        leaves = any(isinstance(one, MutableMapping) for one in (*given, *named.values()))
        if known is not None and known[0] == now and not leaves:
            return known[1]  # type: ignore[return-value]
        out = forward(*given, **named)
        self.computed += 1
        if now == self._kept[: number + 1] and not leaves:
            self._bytes += 0 if known else _bytes_of(out)
            if known or self._bytes <= MOST_BYTES:
                self._known[key] = (now, out)
        return out


def _bytes_of(out: Any) -> int:
    parts = out if isinstance(out, tuple | list) else [out]
    return sum(part.nbytes for part in parts if isinstance(part, Tensor))
