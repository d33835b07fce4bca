"""The doors of a model whose attention is ours: ``generate()`` and direct calls get our cache, and any other is refused.

The keys of another cache would be read as if nothing came before them. Training builds no cache unless asked. What a call asks
for that no attention of ours honours is refused here, before the first layer runs.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.generation import GenerationConfig, GenerationMixin, GenerationMode
from transformers.masking_utils import find_packed_sequence_indices
from transformers.modeling_utils import PreTrainedModel

from jieyue.errors import InputError

from .keywords import PACKED, known_keywords, refuse_callers_keywords, refuse_keywords
from .masks import ask_of
from .memory import StateCache, StateLayer, remembering

__all__ = ["StateCache", "StateLayer", "close_doors", "open_doors"]

_DOORS = "jieyue_doors"  # on a model: the handles of what `open_doors` put there
_SAME_AS_OURS = (None, "dynamic", "hybrid", "hybrid_chunked", "sliding_window")


def open_doors(model: Any) -> None:
    """Lets ``generate()`` and direct calls of the model build our cache, and refuse any other."""
    close_doors(model)
    inside = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    decoders = [part for part in inside if any(remembering(part))]
    stacks = [part for part in decoders if "past_key_values" in _parameters(part)]
    for part in inside:
        vars(part)[_DOORS] = [part.register_forward_pre_hook(_refuse_at_the_door, with_kwargs=True)]
    if isinstance(model, PreTrainedModel):
        strangers = functools.partial(_refuse_strangers, known_keywords(model))
        vars(model)[_DOORS].append(model.register_forward_pre_hook(strangers, with_kwargs=True))
    for part in decoders:
        if hasattr(part, "_prepare_cache_for_generation"):
            vars(part)["_prepare_cache_for_generation"] = functools.partial(_prepare_cache, part)
    for stack in stacks:  # the innermost: the one that would make a cache of its own
        if not any(other in stack.modules() for other in stacks if other is not stack):
            door = _CacheDoor(_parameters(stack), adopts=not any(isinstance(part, GenerationMixin) for part in inside))
            vars(stack)[_DOORS].append(stack.register_forward_pre_hook(door, with_kwargs=True))


def close_doors(model: Any) -> None:
    """Undoes ``open_doors``."""
    for part in model.modules():
        for handle in vars(part).pop(_DOORS, []):
            handle.remove()
            vars(part).pop("_prepare_cache_for_generation", None)


def _prepare_cache(
    model: PreTrainedModel,
    generation_config: GenerationConfig,
    model_kwargs: dict[str, object],
    generation_mode: GenerationMode,
    *args: int,
    **kwargs: int,
) -> None:
    """In the place of GenerationMixin's: plain ``generate()`` gets our cache."""
    if model_kwargs.get("past_key_values") is not None:
        theirs = vars(GenerationMixin)["_prepare_cache_for_generation"]
        theirs(model, generation_config, model_kwargs, generation_mode, *args, **kwargs)
        return
    if generation_config.use_cache is False:
        return
    if generation_config.cache_implementation not in _SAME_AS_OURS:
        raise InputError(
            f"generate(cache_implementation={generation_config.cache_implementation!r}): a pattern has a cache of its own, "
            "expected None"
        )
    cache = _new_cache(model, cross=model.config.is_encoder_decoder)
    own = cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache
    if generation_mode == GenerationMode.ASSISTED_GENERATION and not own.is_croppable:
        entries = sorted(
            {str(layer.entry) for layer in own.layers if isinstance(layer, StateLayer) and not layer.is_croppable}
        )
        raise InputError(
            f"generate(): assisted and prompt-lookup decoding take rejected tokens back, which {', '.join(entries)} cannot; "
            "expected exact patterns in every layer, or decoding without an assistant"
        )
    if generation_config.is_assistant:
        cache.activate_past_recording()
    model_kwargs["past_key_values"] = cache


class _CacheDoor:
    """Before a decoder's forward pass: gives it our cache where it would make its own, and refuses a foreign one.

    ``adopts``: the model is a part that something outside generates with (a vision-language model), so an empty DynamicCache
    is that one's, and its layers become ours.
    """

    def __init__(self, parameters: tuple[str, ...], adopts: bool) -> None:
        self.parameters, self.adopts, self.takes_more = parameters, adopts, "kwargs" in parameters

    def __call__(
        self, stack: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        given = dict(zip(self.parameters, args, strict=False)) | kwargs
        past = given.get("past_key_values")
        if past is not None:
            own = past.self_attention_cache if isinstance(past, EncoderDecoderCache) else past
            if self.adopts and type(own) is DynamicCache and own.get_seq_length() == 0:
                own.layers, own.layer_class_to_replicate = StateCache(stack).layers, None
            elif any(isinstance(layer, StateLayer) for layer in own.layers):
                _check_cache(own, stack)
            else:
                raise InputError(
                    f"{type(stack).__name__}: past_key_values is a {type(own).__name__}, whose keys a pattern cannot read; "
                    "expected none (one is made), or the cache that an earlier call of this model returned"
                )
            return None
        asked = given.get("use_cache")
        forgetful = stack.training and (asked is None or getattr(stack, "gradient_checkpointing", False))
        wanted = getattr(stack.config, "use_cache", False) if asked is None else asked
        if wanted and not forgetful and given.get("is_causal", getattr(stack.config, "is_causal", True)) is not False:
            if _is_packed(given):
                if asked:
                    raise InputError(
                        f"{type(stack).__name__}: found packed documents with use_cache=True, expected use_cache=False: a cache does "
                        "not keep documents apart"
                    )
                return (), self.with_documents(given) | {"use_cache": False}
            cross = stack.config.is_encoder_decoder or given.get("encoder_hidden_states") is not None
            given |= {"past_key_values": _new_cache(stack, cross=cross), "use_cache": True}
            return (), given
        given["use_cache"] = False
        if _is_packed(given):
            return (), self.with_documents(given)
        if torch.compiler.is_compiling() and given.get("position_ids") is None and given.get("attention_mask") is None:
            # Traced positions all look like packed documents to transformers, unless there is a mask
            tokens = given["input_ids"] if given.get("input_ids") is not None else given["inputs_embeds"]
            given["attention_mask"] = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        return (), given

    def with_documents(self, given: dict[str, Any]) -> dict[str, Any]:
        """With the document of each token as ``seq_idx`` where positions tell it: not every model tells its masks (gpt-oss)."""
        if not self.takes_more or any(given.get(key) is not None for key in PACKED):
            return given
        return given | {"seq_idx": find_packed_sequence_indices(given["position_ids"])}


def _new_cache(model: Any, cross: bool) -> Any:
    cache = StateCache(model)
    return (
        EncoderDecoderCache(cache, DynamicCache(config=model.config.get_text_config(decoder=True))) if cross else cache
    )


def _is_packed(given: Mapping[str, Any]) -> bool:
    """Whether a row holds several documents; transformers looks for them in positions only where there is no cache and no mask."""
    if any(given.get(key) is not None for key in PACKED):
        return True
    positions = given.get("position_ids")
    if positions is None or given.get("attention_mask") is not None or positions.ndim != 2:
        return False
    return not torch.compiler.is_compiling() and find_packed_sequence_indices(positions) is not None


def _check_cache(cache: Cache, stack: nn.Module) -> None:
    """Refuses a cache of ours that was made for another model, or before the attention was changed."""
    for layer in cache.layers:
        if isinstance(layer, StateLayer):
            layer.check_owner(stack)


def _refuse_at_the_door(model: PreTrainedModel, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
    """Before any layer of a model, or of a part of it, runs."""
    name = type(model).__name__
    refuse_callers_keywords(name, kwargs, getattr(model.config, "is_causal", True))
    given = dict(zip(_parameters(model), args, strict=False)) | kwargs
    for key in ("attention_mask", "decoder_attention_mask"):
        mask = given.get(key)
        masks = list(mask.values()) if isinstance(mask, dict) else [mask]
        for one in masks:
            if isinstance(one, Tensor) and (one.ndim == 4 or isinstance(mask, dict)) and ask_of(one) is None:
                kind = f"a dict of {len(masks)} masks" if isinstance(mask, dict) else f"shape {list(one.shape)}"
                raise InputError(
                    f"{name}: found {key} of {kind}, expected [B, M] with 1 = keep; a prepared four-dimensional mask cannot be "
                    "honoured by a pattern"
                )


def _refuse_strangers(
    known: frozenset[str], model: PreTrainedModel, args: tuple[Tensor, ...], kwargs: dict[str, Tensor | bool | None]
) -> None:
    """A keyword that nothing in the model names would reach its attention through ``**kwargs``: refused before any layer runs."""
    refuse_keywords(type(model).__name__, {key: given for key, given in kwargs.items() if key not in known})


def _parameters(model: nn.Module) -> tuple[str, ...]:
    return tuple(inspect.signature(type(model).forward).parameters)[1:]
