"""Values in a trace on fake tensors: what follows from the batch alone (padding, labels, positions) is known and computed.

A trace has shapes and no values; but what a step does may depend on values of its batch: a mask is left out where no token is
padding, a loss looks only at positions that have labels, packed rows are found by positions that start again. Inside this mode
such small tensors have a real twin: an operator whose tensors all have twins is run on them too, and where it asks for values
(``.item()``, ``nonzero``, indexing by truth values) the twin answers. What depends on weights stays unknown. Of numbers that are
drawn one is known: a single one between 0 and 1, by which transformers' models leave out a layer (``layerdrop``) where it is small. It
is taken as the largest, so that every layer runs: of all updates the one that needs most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from .operators import Arguments, Keywords, Operator, Result, Types

__all__ = ["KnownValues"]

LARGEST = 2**22  # entries of a twin
HIGHEST = 1 - 2**-11  # drawn below 1, in float16 too
_ASKING = {torch.ops.aten.nonzero.default, torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default,
           torch.ops.aten.masked_select.default, torch.ops.aten.repeat_interleave.Tensor,
           torch.ops.aten._unique2.default, torch.ops.aten.unique_consecutive.default}  # fmt: skip
_INDEXING = {torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default}


class KnownValues(TorchDispatchMode):
    """``faked(batch)`` enters a batch; inside, what follows from it is followed."""

    def __init__(self, mode: FakeTensorMode) -> None:
        super().__init__()
        self.mode = mode
        self.twins: Any = WeakTensorKeyDictionary()  # fake: real
        self.lost: dict[
            int, torch.UntypedStorage
        ] = {}  # of twins that an unknown value was written into; kept, as addresses return

    def faked(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The batch with fakes for its tensors; those of integers and truth values are known."""
        return {name: self._enter(value) if isinstance(value, Tensor) else value for name, value in batch.items()}

    def _enter(self, real: Tensor) -> Tensor:
        with _disable_current_modes():
            twin = real.clone() if not real.is_floating_point() and real.numel() <= LARGEST else None
        fake = self.mode.from_tensor(real)
        if twin is not None:
            self.twins[fake] = twin
        return fake

    def _twin(self, fake: Tensor) -> Tensor | None:
        real = self.twins.get(fake)
        return None if real is None or real.untyped_storage()._cdata in self.lost else real

    def __torch_dispatch__(
        self, func: Operator, types: Types, args: Arguments = (), kwargs: Keywords | None = None
    ) -> Result:
        kwargs = kwargs or {}
        if func in _INDEXING:
            args = (args[0], self._places(args[1]), *args[2:])
        tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
        twins = [self._twin(tensor) for tensor in tensors]
        known = all(twin is not None for twin in twins) and torch.Tag.nondeterministic_seeded not in func.tags
        if not tensors:
            known = known and _is_small_factory(func, kwargs)
        if func is torch.ops.aten.rand.default and not args[0]:
            return self._drawn(func(*args, **kwargs))
        if not known:
            self._lose(func, args, kwargs)
            return func(*args, **kwargs)
        if func in _ASKING:
            return self._answer(self._run(func, args, kwargs))
        result = func(*args, **kwargs)
        fakes = [value for value in tree_flatten(result)[0] if isinstance(value, Tensor)]
        if fakes and all(map(_worth, fakes)):
            reals = [value for value in tree_flatten(self._run(func, args, kwargs))[0] if isinstance(value, Tensor)]
            self.twins.update(zip(fakes, reals, strict=True))
        else:
            self._lose(func, args, kwargs)
        return result

    def _drawn(self, fake: Tensor) -> Tensor:
        with _disable_current_modes():
            self.twins[fake] = torch.full((), HIGHEST, dtype=fake.dtype)
        return fake

    def _run(self, func: Operator, args: Arguments, kwargs: Keywords) -> Result:
        real_args, real_kwargs = tree_map(
            lambda value: self.twins[value] if isinstance(value, Tensor) else value, (args, kwargs)
        )
        if "device" in real_kwargs:
            real_kwargs = {**real_kwargs, "device": torch.device("cpu")}
        with _disable_current_modes():
            return func(*real_args, **real_kwargs)

    def _answer(self, real: Result) -> Result:
        if isinstance(real, tuple):
            return tuple(self._enter(one) for one in real)
        return self._enter(real) if isinstance(real, Tensor) else real

    def _places(self, indices: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Truth values that are known become the places where they hold, as indexing makes them itself."""
        found: list[Tensor | None] = []
        for index in indices:
            if isinstance(index, Tensor) and index.dtype == torch.bool and self._twin(index) is not None:
                with _disable_current_modes():
                    places = self.twins[index].nonzero().unbind(1)
                found += [self._enter(place) for place in places]
            else:
                found.append(index)
        return found

    def _lose(self, func: Operator, args: Arguments, kwargs: Keywords) -> None:
        """What an unknown value is written into is no longer known, nor are its views."""
        if not func._schema.is_mutable:
            return
        written = [value for argument, value in zip(func._schema.arguments, args, strict=False) if argument.is_write]
        for value in [*written, kwargs.get("out")]:
            if isinstance(value, Tensor) and (real := self.twins.get(value)) is not None:
                storage = real.untyped_storage()
                self.lost[storage._cdata] = storage


def _worth(tensor: Tensor) -> bool:
    return tensor.numel() <= (4096 if tensor.is_floating_point() else LARGEST)


def _is_small_factory(func: Operator, kwargs: Keywords) -> bool:
    return func in (
        torch.ops.aten.arange.default, torch.ops.aten.arange.start, torch.ops.aten.arange.start_step,
        torch.ops.aten.zeros.default, torch.ops.aten.ones.default, torch.ops.aten.full.default,
        torch.ops.aten.scalar_tensor.default,
    )  # fmt: skip
