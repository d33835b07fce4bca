"""What a model with our attention remembers while decoding: one memory per layer, of the size that its entry needs.

    local(w)       keeps and reads w + 1 keys per token: constant memory
    atrous, sparse keep all keys, read n/rate (+ window) of them per token
    full()         as transformers' own DynamicCache

Gradients do not flow into tokens of earlier calls: asking for them raises.
"""

from __future__ import annotations

import sys
import weakref
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import cache_utils
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionCacheLayerMixin,
    LinearAttentionLayer,
)
from transformers.modeling_utils import PreTrainedModel

from jieyue.errors import InputError

from .entries import Entry, Memory
from .layers import SLOT, LayerAttention
from .masks import Ask

__all__ = ["MixedLayer", "StateCache", "StateLayer", "remembering", "state_layer_of"]

_TAG = "jieyue_layer"  # on the keys that a StateLayer hands out: whose they are
_KNOWN = (
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
)  # layers of which a cache's keys and values are all that attention reads
_WITHOUT: tuple[type, ...] = tuple(
    kind for name, kind in vars(cache_utils).items() if name == "DummyLayer"
)  # a layer that reads another one's keys, where this transformers has a name for it
_AS_GIVEN = (None, -1)  # the place of what is kept as it was given
_SLACK = 256  # tokens that assisted decoding may take back at once


class _Given:
    """Keys and values as a model gave them, [B, G, C, D] and [B, G, C, V], with their gradients."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.held = (keys, values)

    @property
    def nbytes(self) -> int:
        return sum(x.numel() * x.element_size() for x in self.held)

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        self.held = (torch.cat([self.held[0], keys], 2), torch.cat([self.held[1], values], 2))
        return self.held

    def reorder(self, index: Tensor) -> None:
        self.held = (self.held[0][index], self.held[1][index])

    def crop(self, length: int) -> None:
        self.held = (self.held[0][:, :, :length], self.held[1][:, :, :length])


class StateLayer(CacheLayerMixin):
    """One layer of the cache: ``update`` takes the new keys, ``attend`` (called by our attention function) reads.

    transformers tells a cache no padding and no queries, so ``update`` only hands the new keys back, marked as its own; the
    attention function finds the mark and calls ``attend``, which has all three. Layers that share the keys of this one, and
    layers that read them twice, each have a memory of their own.
    """

    is_sliding = False
    supports_early_init = False

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._owner = weakref.ref(module)
        self.entry = _entry_of(module)
        self.memories: dict[tuple[int | None, int], Memory] = {}  # (layer number, how manyth call) -> what it remembers
        self.batch = 0
        self._seen = 0  # tokens handed to `update`
        self.record_past = False
        self._waiting: Tensor | None = None  # the newest keys, their values, and how often each layer has read them
        self._values: Tensor | None = None
        self._reads: Counter[int | None] = Counter()

    @property
    def keys(self) -> Tensor:
        """Refused: a model that reads its cache's keys itself (Mllama) would find others than it put there."""
        raise InputError(
            "past_key_values: the model reads the keys of its cache itself, which a pattern keeps in another form; call with "
            "use_cache=False"
        )

    @keys.setter
    def keys(self, given: Tensor | None) -> None:
        assert given is None

    @property
    def memory(self) -> Memory | None:
        """What the layer itself remembers; None before its first call."""
        return next(iter(self.memories.values()), None)

    @property
    def is_croppable(self) -> bool:  # type: ignore[override]
        return self.entry.croppable

    @property
    def nbytes(self) -> int:
        return sum(memory.nbytes for memory in self.memories.values())

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """The new keys and values [B, G, T, D], marked; nothing is stored before ``attend``."""
        self.check_owner()
        if self._waiting is not None and not self._reads:
            raise InputError(
                "a cache of jieyue's patterns was given to attention that is not ours (the pattern was taken off); expected the "
                "model that the cache was made for"
            )
        self.is_initialized = True
        self.batch = key_states.shape[0]
        self._seen += key_states.shape[2]
        given = self.memories.get(_AS_GIVEN)
        if isinstance(given, _Given):
            return given.append(key_states, value_states)
        key_states = key_states.view_as(key_states)  # a tensor of its own to carry the mark
        self._waiting, self._values = key_states, value_states
        self._reads.clear()
        setattr(key_states, _TAG, self)
        vars(self._owner())[SLOT].waiting = self
        return key_states, value_states

    def keep_as_given(self) -> None:
        """What was handed out is no key yet (latent attention): from here on all of it is kept, and handed out whole."""
        assert self._waiting is not None and self._values is not None
        self.memories[_AS_GIVEN] = _Given(self._waiting, self._values)
        self._waiting = self._values = None

    def check_owner(self, stack: nn.Module | None = None) -> None:
        """``InputError`` where the module that the layer was made for is not in ``stack``, or has another entry by now."""
        owner = self._owner()
        strange = stack is not None and all(owner is not module for module in stack.modules())
        if owner is None or strange or SLOT not in vars(owner) or str(_entry_of(owner)) != str(self.entry):
            raise InputError(
                f"past_key_values: found a cache made under the attention {self.entry}, which is not what this model has now; "
                "expected a cache that this model returned since its last use(attention=...)"
            )

    def attend(
        self,
        layer: LayerAttention,
        number: int | None,
        qkv: tuple[Tensor, Tensor, Tensor],
        ask: Ask,
        scale: float | None,
        dropout: float,
    ) -> Tensor:
        """Attention of the newest tokens: q [B, H, T, D], ask.keys [B, tokens seen] -> [B, H, T, V].

        ``layer`` and its ``number`` are the reader's, which may share the keys of this one.
        """
        layer.waiting = None
        q, k, v = qkv
        reader = (number, self._reads[number])
        self._reads[number] += 1
        if ask.segments is not None:
            raise InputError("past_key_values: found packed documents and a cache, expected use_cache=False")
        if ask.keys is not None:
            if ask.keys.shape[1] != self._seen:
                raise InputError(
                    f"attention_mask: found width {ask.keys.shape[1]}, expected {self._seen}, the tokens seen so far"
                )
            ask = replace(ask, keys=ask.keys[:, -k.shape[2] :])
        memory = self.memories.get(reader)
        if memory is None and self._seen != k.shape[2]:
            raise InputError(
                "past_key_values: found a layer that has not read the tokens before, expected one call for all"
            )
        if memory is not None and dropout:
            raise InputError(
                f"dropout={dropout} with a cache that has seen tokens, expected 0: call model.eval(), or use_cache=False"
            )
        first = memory is None
        with torch.set_grad_enabled(first and torch.is_grad_enabled()):
            out, self.memories[reader] = layer.entry_for(True).decode(
                memory, q, k, v, ask, scale=scale, dropout=dropout, slack=self._slack
            )
        return _WithoutPast.apply(out, q, k, v) if torch.is_grad_enabled() and not first else out

    def get_seq_length(self) -> int:
        self.check_owner()
        return self._seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + int(query_length), 0

    def get_max_length(self) -> int:
        return -1

    get_max_cache_shape = get_max_length

    def activate_past_recording(self) -> None:
        """From here on up to ``256`` tokens can be taken back (assisted decoding)."""
        if self.memories and not self.record_past:
            raise InputError("activate_past_recording: found a cache that has seen tokens, expected an empty one")
        self.record_past = True

    @property
    def _slack(self) -> int:
        return _SLACK if self.record_past else 0

    def crop(self, tokens_to_remove: int) -> None:
        """Forgets the newest -tokens_to_remove tokens (transformers counts them as a negative number)."""
        if tokens_to_remove > 0:
            raise InputError(f"crop({tokens_to_remove}): expected a negative number, of tokens to take back")
        if tokens_to_remove:
            self._seen += int(tokens_to_remove)
            for memory in self.memories.values():
                memory.crop(self._seen)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.batch_select_indices(torch.arange(self.batch).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Row b becomes what row indices[b] was; indices may be a bool mask of the rows to keep."""
        if self.memories:
            rows = torch.arange(self.batch, device=indices.device)[indices]
            self.batch = len(rows)
            for memory in self.memories.values():
                memory.reorder(rows)

    def reset(self) -> None:
        self.memories.clear()
        self._waiting = self._values = None
        self._seen = 0
        self.is_initialized = False

    def offload(self) -> None:
        raise InputError("a cache of jieyue's patterns cannot be offloaded; use a local pattern to keep it small")

    prefetch = offload


class MixedLayer(LinearAttentionLayer, StateLayer):
    """A layer that has attention and a recurrent state or convolution side by side (Falcon-H1)."""

    is_compileable = False
    is_croppable = False

    def __init__(self, module: nn.Module, num_states: int) -> None:
        StateLayer.__init__(self, module)
        LinearAttentionLayer.__init__(self, number_of_states=num_states)

    def activate_past_recording(self) -> None:
        StateLayer.activate_past_recording(self)
        LinearAttentionLayer.activate_past_recording(self)

    def crop(self, tokens_to_remove: int) -> None:
        LinearAttentionLayer.crop(self, tokens_to_remove)
        StateLayer.crop(self, tokens_to_remove)

    def reset(self) -> None:
        LinearAttentionLayer.reset(self)
        StateLayer.reset(self)

    def batch_select_indices(self, indices: Tensor) -> None:
        rows = torch.arange(self.batch, device=indices.device)[indices]
        LinearAttentionLayer.reorder_cache(self, rows)  # type: ignore[arg-type]
        StateLayer.batch_select_indices(self, rows)

    reorder_cache = batch_select_indices  # type: ignore[assignment]
    get_max_length = StateLayer.get_max_length
    offload = StateLayer.offload
    prefetch = StateLayer.offload


class StateCache(DynamicCache):
    """A ``StateLayer`` for every causal self-attention that has an entry; the layers of other kinds as in DynamicCache."""

    def __init__(self, model: PreTrainedModel) -> None:
        for name, one in vars(sys.modules[type(model).__module__]).items():
            if isinstance(one, type) and issubclass(one, Cache) and one.__module__ == type(model).__module__:
                raise InputError(
                    f"{type(model).__name__}: found a cache of its own kind ({name}), beside which a pattern's cannot be kept; "
                    "call with use_cache=False"
                )
        super().__init__(config=model.config.get_text_config(decoder=True))
        for index, module in remembering(model):
            if index is not None and index >= len(self.layers) and getattr(module, "is_kv_shared_layer", False):
                continue  # where transformers has no layer of a cache for one that reads another's keys
            if index is None or not 0 <= index < len(self.layers):
                raise InputError(
                    f"{type(model).__name__}: found the layer number {index} of {len(self.layers)}, expected one that a cache "
                    "can be kept for; call with use_cache=False"
                )
            before = self.layers[index]
            if isinstance(before, _WITHOUT):
                continue  # it reads the keys of another layer
            if type(before) not in _KNOWN:
                raise InputError(
                    f"{type(model).__name__}: found layer {index} with a cache of {type(before).__name__}, expected plain keys and "
                    "values; call with use_cache=False"
                )
            self.layers[index] = (
                MixedLayer(module, before.number_of_states)
                if isinstance(before, LinearAttentionCacheLayerMixin)
                else StateLayer(module)
            )

    @property
    def is_linear(self) -> list[bool]:
        """Whether each layer has a recurrent state and no keys."""
        return [
            isinstance(layer, LinearAttentionCacheLayerMixin) and not isinstance(layer, CacheLayerMixin)
            for layer in self.layers
        ]

    @property
    def is_croppable(self) -> bool:
        """Whether every layer can take tokens back."""
        return all(layer.is_croppable for layer in self.layers)

    @property
    def nbytes(self) -> int:
        """Bytes that our layers hold."""
        return sum(layer.nbytes for layer in self.layers if isinstance(layer, StateLayer))


def state_layer_of(keys: Tensor) -> StateLayer | None:
    """The layer that handed these keys out, if one did."""
    return getattr(keys, _TAG, None)


class _WithoutPast(torch.autograd.Function):
    """The output of a step; its backward refuses, because the remembered tokens have no gradient to give."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, *_: Tensor) -> Tensor:
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise InputError(
            "backward through a step that read a cache: the remembered keys and values carry no gradient; "
            "expected the whole sequence in one call, with use_cache=False"
        )


def _entry_of(module: nn.Module) -> Entry:
    layer: LayerAttention = vars(module)[SLOT]
    return layer.entry_for(True)


def remembering(model: nn.Module) -> Iterator[tuple[int | None, nn.Module]]:
    """(layer number, module) of every causal self-attention with an entry."""
    for module in model.modules():
        layer = vars(module).get(SLOT)
        if layer is not None and not layer.cross and layer.causal:
            yield getattr(module, "layer_idx", None), module
