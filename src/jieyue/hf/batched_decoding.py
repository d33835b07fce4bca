"""A causal model fed token by token, many talks at once: rows join while others are in the middle, and leave when done.

    begin(prompts) -> rows, logits       one pass over prompts of any lengths
    step(rows, tokens) -> logits         one token more for every row; equals the last row of the whole in one pass
    rows.join(other) · rows.keep(numbers) · rows.crop(count)

Whoever decodes goes through here: the terminal, the server, and the searches that judge (``hf.steps``). ``KeptStates`` is
what is known of talks that may go on: of a next turn only the new tokens are read.

Rows are aligned at their newest token; what a shorter one lacks is padding on the left, which nobody sees. Caches of patterns
and of sliding windows cannot be joined (``can_join``): such rows go on beside one another.

Letters: B rows, M tokens of the longest row, G key heads, D head size, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy
import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin, DynamicCache, DynamicLayer

from jieyue.decoding.slots import narrowed
from jieyue.errors import InputError

__all__ = ["DecodingRows", "KeptStates", "Stepper"]


class RoomyLayer(CacheLayerMixin):
    """Keys and values in buffers with room, so that a new token is written and nothing before it is copied."""

    is_sliding = False
    is_croppable = True

    def __init__(self) -> None:
        super().__init__()
        self.length = 0
        self.held: tuple[Tensor, Tensor] | None = None  # [B, G, room, D] each

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Adds T tokens [B, G, T, D]; returns all, as views."""
        self.is_initialized = True
        stop = self.length + key_states.shape[2]
        if self.held is None or stop > self.held[0].shape[2]:
            room = max(64, stop + stop // 4)
            k, v = (new.new_empty(*new.shape[:2], room, new.shape[3]) for new in (key_states, value_states))
            if self.held is not None:
                k[:, :, : self.length], v[:, :, : self.length] = self.all()
            self.held = k, v
        self.held[0][:, :, self.length : stop] = key_states
        self.held[1][:, :, self.length : stop] = value_states
        self.length = stop
        return self.all()

    def all(self) -> tuple[Tensor, Tensor]:
        assert self.held is not None
        return self.held[0][:, :, : self.length], self.held[1][:, :, : self.length]

    def put(self, k: Tensor, v: Tensor) -> None:
        """Replaces what is held."""
        self.held, self.length, self.is_initialized = None, 0, True
        self.update(k, v)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + int(query_length), 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return -1

    get_max_cache_shape = get_max_length

    def crop(self, tokens_to_remove: int) -> None:
        self.length -= abs(tokens_to_remove)

    def batch_select_indices(self, indices: Tensor) -> None:
        k, v = self.all()
        self.put(k[indices], v[indices])

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def reset(self) -> None:
        self.held, self.length, self.is_initialized = None, 0, False


class DecodingRows:
    """Talks that decode together. ``lengths[b]``: tokens of row b that the model has seen."""

    def __init__(self, cache: Any, lengths: list[int], mask: Tensor | None) -> None:
        self.cache, self.lengths, self.mask = cache, lengths, mask  # mask [B, M], True = a token; None = no padding

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def nbytes(self) -> int:
        """Bytes that the layers hold."""
        total = 0
        for layer in self.cache.layers:
            own = getattr(
                layer, "nbytes", None
            )  # a pattern's layer tells it, and keeps no keys that could be asked for
            parts = (
                layer.held or ()
                if isinstance(layer, RoomyLayer)
                else ()
                if own is not None
                else (layer.keys, layer.values)
            )
            total += int(own or 0) + sum(part.numel() * part.element_size() for part in parts if part is not None)
        return total

    @property
    def can_join(self) -> bool:
        return type(self.cache) is DynamicCache and all(isinstance(layer, RoomyLayer) for layer in self.cache.layers)

    def alone(self, number: int) -> DecodingRows:
        """Row ``number`` as rows of its own, copied; the cache must be one that can join, or have this row only."""
        if len(self) == 1:
            return self
        length = self.lengths[number]
        cache, layers = DynamicCache(), [RoomyLayer() for _ in self.cache.layers]
        cache.layers = list(layers)
        for own, new in zip(self.cache.layers, layers, strict=True):
            new.put(*(part[number : number + 1, :, part.shape[2] - length :] for part in own.all()))
        return DecodingRows(cache, [length], None)

    def reorder(self, index: Tensor) -> None:
        """Row b becomes what row index[b] was; more or fewer rows than before are allowed."""
        self.keep(index.tolist())

    def keep(self, numbers: Sequence[int]) -> None:
        """Row i becomes what row numbers[i] was; padding that all remaining rows share is given up."""
        index = torch.tensor(list(numbers), dtype=torch.long)
        self.lengths = [self.lengths[number] for number in numbers]
        device = _device(self.cache)
        if list(numbers) != list(range(len(numbers))) or self._num_rows() != len(numbers):
            self.cache.batch_select_indices(index.to(device) if device is not None else index)
            self.mask = None if self.mask is None else self.mask[index.to(self.mask.device)]
        if self.mask is not None and self.can_join:
            surplus = self.mask.shape[1] - max(self.lengths)
            if surplus:
                for layer in self.cache.layers:
                    layer.put(*(part[:, :, surplus:] for part in layer.all()))
            self.mask = self.mask[:, surplus:]
            self.mask = None if bool(self.mask.all()) else self.mask

    def join(self, other: DecodingRows) -> None:
        """The rows of ``other`` come after one's own; ``other`` is used up. ``InputError`` where caches cannot be joined."""
        if not (self.can_join and other.can_join):
            raise InputError("DecodingRows.join: found a cache of patterns or windows, expected plain ones (can_join)")
        width = max(*self.lengths, *other.lengths)
        for own, new in zip(self.cache.layers, other.cache.layers, strict=True):
            parts = [[_padded(part, width) for part in layer.all()] for layer in (own, new)]
            own.put(torch.cat([parts[0][0], parts[1][0]]), torch.cat([parts[0][1], parts[1][1]]))
        self.lengths = self.lengths + other.lengths
        full = [length == width for length in self.lengths]
        device = _device(self.cache)
        ends = torch.tensor(self.lengths, device=device)[:, None]
        self.mask = None if all(full) else torch.arange(width, device=device)[None] >= width - ends

    def crop(self, count: int) -> bool:
        """Forgets the newest ``count`` tokens of every row; False where the cache cannot, and then it is of no use any more."""
        if count == 0:
            return True
        if not all(getattr(layer, "is_croppable", False) for layer in self.cache.layers) or count > min(self.lengths):
            return False
        try:
            self.cache.crop(-count)
        except (ValueError, RuntimeError):  # a window that has let go of what came before
            return False
        self.lengths = [length - count for length in self.lengths]
        self.mask = None if self.mask is None else self.mask[:, :-count]
        return True

    def _num_rows(self) -> int:
        for layer in self.cache.layers:
            if isinstance(layer, RoomyLayer) and layer.held is not None:
                return int(layer.held[0].shape[0])
            if hasattr(layer, "batch"):
                return int(layer.batch)
        return -1


class Stepper:
    """Feeds a causal model (``AutoModelForCausalLM``'s kind, in evaluation mode). Not for several threads at once."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.takes = set(inspect.signature(type(model).forward).parameters)
        self.device = next(model.parameters()).device

    def begin(self, prompts: Sequence[Sequence[int]]) -> tuple[DecodingRows, Tensor]:
        """The prompts, read in one pass: their rows and the logits after their last tokens [B, V]."""
        if not prompts or not all(len(prompt) for prompt in prompts):
            raise InputError(f"Stepper.begin: found {len(prompts)} prompts, one perhaps empty, expected tokens in each")
        width = max(len(prompt) for prompt in prompts)
        ids = torch.zeros(len(prompts), width, dtype=torch.long)
        for row, prompt in zip(ids, prompts, strict=True):
            row[width - len(prompt) :] = torch.as_tensor(prompt, dtype=torch.long)
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        return self.begin_padded(ids, torch.arange(width)[None] >= width - lengths[:, None])

    def begin_padded(self, ids: Tensor, mask: Tensor | None = None) -> tuple[DecodingRows, Tensor]:
        """The same of ids [B, M] with padding on the left, where ``mask`` [B, M] is 0."""
        mask = None if mask is None or bool(mask.all()) else mask.to(self.device, torch.bool)
        if mask is not None and not bool(mask[:, -1].all()):
            raise InputError("Stepper.begin: found prompts padded on the right, expected padding on the left")
        rows = DecodingRows(None, [0] * len(ids), mask)  # the model makes its cache
        counts = [ids.shape[1]] * len(ids) if mask is None else mask.sum(1).tolist()
        return rows, self._feed(rows, ids.to(self.device), counts)

    def step(self, rows: DecodingRows, tokens: Sequence[int] | Tensor) -> Tensor:
        """One token more in every row [B], or several [B, T] -> logits after the last [B, V]."""
        ids = torch.as_tensor(tokens, dtype=torch.long, device=self.device)
        ids = ids[:, None] if ids.ndim == 1 else ids
        if rows.mask is not None:
            rows.mask = torch.cat([rows.mask, rows.mask.new_ones(ids.shape)], 1)
        return self._feed(rows, ids, [ids.shape[1]] * len(rows))

    def extend(self, rows: DecodingRows, tokens: Sequence[int]) -> Tensor:
        """Several tokens more in a single row -> logits [1, V]: a turn that is added to a talk."""
        assert len(rows) == 1 and rows.mask is None and len(tokens)
        return self.step(rows, torch.as_tensor(tokens)[None])

    @torch.inference_mode()
    def _feed(self, rows: DecodingRows, ids: Tensor, counts: list[int]) -> Tensor:
        width = ids.shape[1]
        rows.lengths = [before + count for before, count in zip(rows.lengths, counts, strict=True)]
        given: dict[str, Any] = {"input_ids": ids, "use_cache": True}
        if rows.cache is not None:
            given["past_key_values"] = rows.cache
        if rows.mask is not None:
            given["attention_mask"] = rows.mask.long()
        if "position_ids" in self.takes:
            ends = torch.tensor(rows.lengths, device=self.device)[:, None]
            given["position_ids"] = (torch.arange(width, device=self.device)[None] + ends - width).clamp_min(0)
        if "logits_to_keep" in self.takes:
            given["logits_to_keep"] = 1
        whole = "logits_to_keep" not in self.takes and width > 1  # then the other positions' logits are left out here
        with narrowed(self.model, width, lambda states: states[:, -1:]) if whole else nullcontext():
            out = self.model(**given)
        rows.cache = _roomy(out.past_key_values) if rows.cache is None else out.past_key_values
        logits: Tensor = out.logits[:, -1]
        return logits


class KeptStates:
    """States of talks that may go on, the newest up to ``max_bytes``; one at least where it fits."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._states: OrderedDict[int, tuple[numpy.ndarray, DecodingRows]] = OrderedDict()
        self._num_kept = 0

    def keep(self, ids: Sequence[int], rows: DecodingRows) -> None:
        """The state of a single row that has seen the first ``rows.lengths[0]`` of these tokens."""
        if rows.nbytes > self.max_bytes:
            return
        self._states[self._num_kept] = numpy.asarray(ids[: rows.lengths[0]], dtype=numpy.int64), rows
        self._num_kept += 1
        while sum(one.nbytes for _, one in self._states.values()) > self.max_bytes:
            self._states.popitem(last=False)

    def take(self, prompt: Sequence[int], least: float = 0.5) -> DecodingRows | None:
        """The state that knows most of the prompt's beginning, cut to what they share; None below a share of ``least``.

        It is not kept any more. One token of the prompt at least is left to be read, for its logits.
        """
        wanted = numpy.asarray(prompt, dtype=numpy.int64)[:-1]
        best, shared = -1, 0
        for number, (ids, _) in self._states.items():
            count = min(len(ids), len(wanted))
            differs = ids[:count] != wanted[:count]
            count = int(differs.argmax()) if differs.any() else count
            if count > shared:
                best, shared = number, count
        if shared == 0 or shared < least * len(prompt):
            return None
        ids, rows = self._states.pop(best)
        return rows if rows.crop(len(ids) - shared) else None

    def clear(self) -> None:
        """Forgets all."""
        self._states.clear()


def _roomy(cache: Any) -> Any:
    """A plain cache with room in its plain layers; any other as it is (patterns, windows, segments)."""
    if type(cache) is DynamicCache:
        for number, layer in enumerate(cache.layers):
            if type(layer) is DynamicLayer and layer.keys is not None and layer.values is not None:
                cache.layers[number] = roomy = RoomyLayer()
                roomy.put(layer.keys, layer.values)
    return cache


def _padded(part: Tensor, width: int) -> Tensor:
    """Rows of [B, G, m, D] aligned at the right end of ``width`` tokens."""
    missing = width - part.shape[2]
    return torch.nn.functional.pad(part, (0, 0, missing, 0)) if missing >= 0 else part[:, :, -missing:]


def _device(cache: Any) -> torch.device | None:
    for layer in cache.layers:
        if isinstance(layer, RoomyLayer) and layer.held is not None:
            return layer.held[0].device
    return None
