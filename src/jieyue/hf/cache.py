"""The decoding cache of a model whose attention is ours: one memory per layer, of the size that its entry needs.

    local(w)       keeps and reads w + 1 keys per token: constant memory
    atrous, sparse keep all keys, read n/rate (+ window) of them per token
    full()         as transformers' own DynamicCache

``generate()`` builds it, and so does a direct call with ``use_cache``; any other cache is refused, because its keys would be
read as if nothing came before them. Training builds none unless asked. Gradients do not flow into tokens of earlier calls:
asking for them raises.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import CacheLayerMixin, DynamicCache, EncoderDecoderCache
from transformers.masking_utils import find_packed_sequence_indices
from transformers.modeling_utils import PreTrainedModel

from jieyue.errors import InputError

from .entries import SLOT, Entry, Memory

__all__ = ["StateCache", "StateLayer", "close_doors", "open_doors", "state_layer_of"]

_TAG = "jieyue_layer"  # on the keys that a StateLayer hands out: whose they are
_DOORS = "jieyue_doors"  # on a model: the handles of what `open_doors` put there
_SLACK = 256  # tokens that assisted decoding may take back at once
_SAME_AS_OURS = (None, "dynamic", "hybrid", "hybrid_chunked", "sliding_window")


class StateLayer(CacheLayerMixin):
    """One layer of the cache: ``update`` takes the new keys, ``attend`` (called by our attention function) reads.

    transformers tells a cache no padding and no queries, so ``update`` only hands the new keys back, marked as its own; the
    attention function finds the mark and calls ``attend``, which has all three.
    """

    is_sliding = False
    supports_early_init = False

    def __init__(self, entry: Entry) -> None:
        super().__init__()
        self.entry = entry
        self.memory: Memory | None = None
        self.batch = 0
        self._seen = 0  # tokens in the memory
        self.record_past = False
        self._waiting: tuple[Tensor, Tensor] | None = None

    @property
    def is_croppable(self) -> bool:  # type: ignore[override]
        return self.entry.croppable

    @property
    def nbytes(self) -> int:
        return 0 if self.memory is None else self.memory.nbytes

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """The new keys and values [B, G, T, D], marked; nothing is stored before ``attend``."""
        if self._waiting is not None:
            raise InputError(
                "a cache of jieyue's patterns was given to attention that is not ours (the pattern was taken off, or the "
                "model changes the keys after its cache); expected the model that the cache was made for"
            )
        self.is_initialized = True
        self.batch = key_states.shape[0]
        key_states = key_states.view_as(key_states)  # a tensor of its own to carry the mark
        self._waiting = (key_states, value_states)
        setattr(key_states, _TAG, self)
        return key_states, value_states

    def attend(self, q: Tensor, key_mask: Tensor | None, scale: float | None, dropout: float) -> Tensor:
        """Attention of the newest tokens: q [B, H, T, D], key_mask [B, tokens seen] -> [B, H, T, D]."""
        assert self._waiting is not None
        (k, v), self._waiting = self._waiting, None
        seen = self.get_seq_length() + k.shape[2]
        if key_mask is not None:
            if key_mask.shape[1] != seen:
                raise InputError(
                    f"attention_mask: found width {key_mask.shape[1]}, expected {seen}, the tokens seen so far"
                )
            key_mask = key_mask[:, -k.shape[2] :]
        if self.memory is not None and dropout:
            raise InputError(
                f"dropout={dropout} with a cache that has seen tokens, expected 0: call model.eval(), or use_cache=False"
            )
        first = self.memory is None
        with torch.set_grad_enabled(first and torch.is_grad_enabled()):
            out, self.memory = self.entry.decode(
                self.memory, q, k, v, key_mask=key_mask, scale=scale, dropout=dropout, slack=self._slack
            )
        self._seen = seen
        return _WithoutPast.apply(out, q, k, v) if torch.is_grad_enabled() and not first else out

    def get_seq_length(self) -> int:
        return self._seen + (0 if self._waiting is None else self._waiting[0].shape[2])

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + int(query_length), 0

    def get_max_length(self) -> int:
        return -1

    get_max_cache_shape = get_max_length

    def activate_past_recording(self) -> None:
        """From here on up to ``256`` tokens can be taken back (assisted decoding)."""
        if self.memory is not None and not self.record_past:
            raise InputError("activate_past_recording: found a cache that has seen tokens, expected an empty one")
        self.record_past = True

    @property
    def _slack(self) -> int:
        return _SLACK if self.record_past else 0

    def crop(self, tokens_to_remove: int) -> None:
        """Forgets the newest -tokens_to_remove tokens (transformers counts them as a negative number)."""
        if tokens_to_remove > 0:
            raise InputError(f"crop({tokens_to_remove}): expected a negative number, of tokens to take back")
        if tokens_to_remove and self.memory is not None:
            self.memory.crop(self._seen + int(tokens_to_remove))
            self._seen += int(tokens_to_remove)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.batch_select_indices(torch.arange(self.batch).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Row b becomes what row indices[b] was; indices may be a bool mask of the rows to keep."""
        if self.memory is not None:
            rows = torch.arange(self.batch, device=indices.device)[indices]
            self.memory.reorder(rows)
            self.batch = len(rows)

    def reset(self) -> None:
        self.memory = self._waiting = None
        self._seen = 0
        self.is_initialized = False

    def offload(self) -> None:
        raise InputError("a cache of jieyue's patterns cannot be offloaded; use a local pattern to keep it small")

    prefetch = offload


class StateCache(DynamicCache):
    """A ``StateLayer`` for every causal self-attention that has an entry; the layers of other kinds as in DynamicCache."""

    def __init__(self, model: Any) -> None:
        super().__init__(config=model.config.get_text_config(decoder=True))
        for index, entry in _remembering(model):
            if index is None or index >= len(self.layers):
                raise InputError(
                    f"{type(model).__name__}: found the layer number {index} of {len(self.layers)}, expected one that a cache "
                    "can be kept for; call with use_cache=False"
                )
            self.layers[index] = StateLayer(entry)

    @property
    def nbytes(self) -> int:
        """Bytes that our layers hold."""
        return sum(layer.nbytes for layer in self.layers if isinstance(layer, StateLayer))


def state_layer_of(keys: Tensor) -> StateLayer | None:
    """The layer that handed these keys out, if one did."""
    return getattr(keys, _TAG, None)


def open_doors(model: Any) -> None:
    """Lets ``generate()`` and direct calls of the model build our cache, and refuse any other."""
    close_doors(model)
    inside = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    decoders = [part for part in inside if any(_remembering(part))]
    stacks = [part for part in decoders if "past_key_values" in _parameters(part)]
    for part in inside:
        vars(part)[_DOORS] = [part.register_forward_pre_hook(_refuse_matrices, with_kwargs=True)]
    for part in decoders:
        if hasattr(part, "_prepare_cache_for_generation"):
            vars(part)["_prepare_cache_for_generation"] = functools.partial(_prepare_cache, part)
    for stack in stacks:  # the innermost: the one that would make a cache of its own
        if not any(other in stack.modules() for other in stacks if other is not stack):
            door = _CacheDoor(_parameters(stack))
            vars(stack)[_DOORS].append(stack.register_forward_pre_hook(door, with_kwargs=True))


def close_doors(model: Any) -> None:
    """Undoes ``open_doors``."""
    for part in model.modules():
        for handle in vars(part).pop(_DOORS, []):
            handle.remove()
            vars(part).pop("_prepare_cache_for_generation", None)


def _prepare_cache(model: Any, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any) -> None:
    """In the place of GenerationMixin's: plain ``generate()`` gets our cache."""
    if model_kwargs.get("past_key_values") is not None:
        type(model)._prepare_cache_for_generation(model, generation_config, model_kwargs, *args, **kwargs)
        return
    if generation_config.use_cache is False:
        return
    if generation_config.cache_implementation not in _SAME_AS_OURS:
        raise InputError(
            f"generate(cache_implementation={generation_config.cache_implementation!r}): a pattern has a cache of its own, "
            "expected None"
        )
    cache = _new_cache(model, cross=model.config.is_encoder_decoder)
    if generation_config.is_assistant:
        cache.activate_past_recording()
    model_kwargs["past_key_values"] = cache


class _CacheDoor:
    """Before a decoder's forward pass: gives it our cache where it would make its own, and refuses a foreign one."""

    def __init__(self, parameters: tuple[str, ...]) -> None:
        self.parameters = parameters

    def __call__(
        self, stack: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        given = dict(zip(self.parameters, args, strict=False)) | kwargs
        past = given.get("past_key_values")
        if past is not None:
            own = past.self_attention_cache if isinstance(past, EncoderDecoderCache) else past
            if not isinstance(own, StateCache):
                raise InputError(
                    f"{type(stack).__name__}: past_key_values is a {type(own).__name__}, whose keys a pattern cannot read; "
                    "expected none (one is made), or the cache that an earlier call of this model returned"
                )
            return None
        asked = given.get("use_cache")
        forgetful = stack.training and (asked is None or getattr(stack, "gradient_checkpointing", False))
        wanted = getattr(stack.config, "use_cache", False) if asked is None else asked
        if wanted and not forgetful and given.get("is_causal", getattr(stack.config, "is_causal", True)) is not False:
            _refuse_packed(stack, given)
            cross = stack.config.is_encoder_decoder or given.get("encoder_hidden_states") is not None
            given |= {"past_key_values": _new_cache(stack, cross=cross), "use_cache": True}
            return (), given
        given["use_cache"] = False
        if torch.compiler.is_compiling() and given.get("position_ids") is None and given.get("attention_mask") is None:
            # Traced positions all look like packed documents to transformers, unless there is a mask
            tokens = given["input_ids"] if given.get("input_ids") is not None else given["inputs_embeds"]
            given["attention_mask"] = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        return (), given


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


def _new_cache(model: Any, cross: bool) -> Any:
    cache = StateCache(model)
    return (
        EncoderDecoderCache(cache, DynamicCache(config=model.config.get_text_config(decoder=True))) if cross else cache
    )


def _remembering(model: nn.Module) -> Iterator[tuple[int | None, Entry]]:
    """(layer number, causal entry) of every causal self-attention with an entry."""
    for module in model.modules():
        layer = vars(module).get(SLOT)
        if layer is not None and not layer.cross and getattr(module, "is_causal", True):
            yield getattr(module, "layer_idx", None), layer.entry_for(True)


def _refuse_packed(stack: Any, given: dict[str, Any]) -> None:
    """transformers looks for packed documents only where there is no cache; so do we before we make one."""
    positions = given.get("position_ids")
    if positions is None or given.get("attention_mask") is not None or positions.ndim != 2:
        return
    if not torch.compiler.is_compiling() and find_packed_sequence_indices(positions) is not None:
        raise InputError(
            f"{type(stack).__name__}: position_ids start again within a row, so packed documents, which a pattern cannot keep "
            "apart; expected one document in each row"
        )


def _refuse_matrices(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if kwargs.get("output_attentions"):
        raise InputError(f"{type(model).__name__}: output_attentions=True, but no attention matrix is ever formed")


def _parameters(model: nn.Module) -> tuple[str, ...]:
    return tuple(inspect.signature(type(model).forward).parameters)[1:]
