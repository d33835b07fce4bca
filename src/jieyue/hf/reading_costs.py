"""What it takes a model to read a row and to write behind it: seconds, and the bytes that its cache holds.

Which tokens these are changes neither, so they are made up.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from .batched_decoding import DecodingRows

__all__ = ["ReadingCost", "reading_cost"]


@dataclass(frozen=True)
class ReadingCost:
    """``seconds`` of reading a row in one pass, without the output layer. ``cache_bytes`` held after it and ``token_seconds``, the
    median of one more token: None of a model that does not write."""

    seconds: float
    cache_bytes: int | None = None
    token_seconds: float | None = None


def reading_cost(model: PreTrainedModel, num_tokens: int, *, writes: bool, more: int = 9) -> ReadingCost:
    """One row of ``num_tokens``, then, where the model ``writes``, ``more`` tokens one by one, of which the first is not timed.

    The attention and the cache are those that the model has. Cost: the pass and the tokens; memory: one row's activations, the cache.
    """
    ids = (torch.arange(num_tokens, device=model.device) % min(1000, model.config.get_text_config().vocab_size))[None]
    with torch.inference_mode():
        if not writes:
            started = time.perf_counter()
            model.base_model(input_ids=ids)
            _wait(model)
            return ReadingCost(time.perf_counter() - started)
        started = time.perf_counter()
        cache = model.base_model(input_ids=ids, use_cache=True).past_key_values
        _wait(model)
        seconds, taken = time.perf_counter() - started, []
        held = DecodingRows(cache, [num_tokens], None).nbytes
        for _ in range(more):
            started = time.perf_counter()
            cache = model(input_ids=ids[:, :1], past_key_values=cache, use_cache=True).past_key_values
            _wait(model)
            taken.append(time.perf_counter() - started)
    return ReadingCost(seconds, held, statistics.median(taken[1:]))


def _wait(model: PreTrainedModel) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
