"""Other ways to compute a pattern, for the benchmark of attention: torch's own, and packages where they are installed.

A rival is made for one pattern and length; it answers with a function of (q, k, v) or with the sentence that says why not.

Letters: B batch, H heads, N tokens, D head size; all tensors [B, H, N, D].
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from jieyue.attention import Pattern, full

__all__ = ["RIVALS", "Attention", "Rival", "local_window", "sdpa"]

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
_MOST_MASK = 2**30  # bytes of a dense mask that the benchmark will make


@dataclass(frozen=True)
class Rival:
    """``make(pattern, n, device)`` gives the function or why there is none; ``trains`` tells whether it has a backward."""

    name: str
    make: Callable[[Pattern, int, str], Attention | str]
    trains: Callable[[str], bool] = lambda device: True


def sdpa(causal: bool = False) -> Attention:
    """torch's dense kernel, over everything or everything up to the query."""
    return functools.partial(F.scaled_dot_product_attention, is_causal=causal)


def local_window(pattern: Pattern) -> tuple[int, bool] | None:
    """(window, causal) of a plain local pattern, else None."""
    if len(pattern.bands) != 1 or _has_more_than_bands(pattern):
        return None
    (band,) = pattern.bands
    if band.step != 1 or band.hi is None or band.lo not in (0, -band.hi):
        return None
    return band.hi, band.lo == 0


def _has_more_than_bands(pattern: Pattern) -> bool:
    return pattern.first > 0 or pattern.first_past > 0 or pattern.global_rows > 0


def _full(pattern: Pattern, n: int, device: str) -> Attention | str:
    return sdpa(pattern == pattern.causal() and pattern != full())


def _masked(pattern: Pattern, n: int, device: str) -> Attention | str:
    if 4 * n * n > _MOST_MASK:
        return f"the mask of {n}² would take {4 * n * n / 2**30:.0f} GiB"
    return functools.partial(F.scaled_dot_product_attention, attn_mask=pattern.mask(n, n, device=device))


def _flex(pattern: Pattern, n: int, device: str) -> Attention | str:
    """FlexAttention with exactly the blocks of 128 that hold something, compiled."""
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    block, bands = 128, pattern.bands
    if _has_more_than_bands(pattern):
        return "its blocks are made for bands alone"
    if n % block:
        return f"N = {n} is no multiple of {block}"
    num_blocks = n // block
    # what a block shows depends on its distance from the diagonal only
    inside = [
        [d in pattern for d in range(delta * block - block + 1, (delta + 1) * block)]
        for delta in range(1 - num_blocks, num_blocks)
    ]
    delta = torch.arange(num_blocks)[:, None] - torch.arange(num_blocks) + num_blocks - 1
    some, every = torch.tensor([any(x) for x in inside])[delta], torch.tensor([all(x) for x in inside])[delta]

    def visible(batch: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        d = i - j
        found = torch.zeros_like(d, dtype=torch.bool)
        for band in bands:
            here = d % band.step == 0
            here = here if band.lo is None else here & (d >= band.lo)
            here = here if band.hi is None else here & (d <= band.hi)
            found = found | here
        return found

    def listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
        """How many key blocks each block of queries reads, and their numbers, those first."""
        order = blocks.int().argsort(dim=-1, descending=True, stable=True)
        return blocks.sum(-1).int()[None, None].to(device), order.int()[None, None].to(device)

    partial, whole = listed(some & ~every), listed(every)
    mask = BlockMask.from_kv_blocks(
        *partial, full_kv_num_blocks=whole[0], full_kv_indices=whole[1], BLOCK_SIZE=block, mask_mod=visible
    )
    return functools.partial(_compiled_flex(flex_attention), block_mask=mask)


@functools.cache
def _compiled_flex(flex: Any) -> Any:
    return torch.compile(flex, dynamic=False)


def _local_attention(pattern: Pattern, n: int, device: str) -> Attention | str:
    """lucidrains' local-attention with exact windows: the same pairs as local(w)."""
    found = local_window(pattern)
    if found is None:
        return "it computes local patterns only"
    window, causal = found
    if importlib.util.find_spec("local_attention") is None:
        return "local-attention is not installed (pip install 'jieyue[bench]')"
    if n % window:
        return f"N = {n} is no multiple of the window"
    from local_attention import LocalAttention

    return LocalAttention(window, causal=causal, exact_windowsize=True, use_rotary_pos_emb=False).to(device)


def _longformer(pattern: Pattern, n: int, device: str) -> Attention | str:
    """The sliding chunks of transformers' Longformer: the same pairs as local(w)."""
    found = local_window(pattern)
    if found is None or found[1]:
        return "it computes bidirectional local patterns only"
    if n % (2 * found[0]):
        return f"N = {n} is no multiple of twice the window"
    from jieyue.hf.longformer import longformer_attention

    return longformer_attention(found[0])


def _flash_attn(pattern: Pattern, n: int, device: str) -> Attention | str:
    found = local_window(pattern)
    if not device.startswith("cuda"):
        return "it runs on CUDA only"
    if found is None:
        return "it computes local patterns only"
    if importlib.util.find_spec("flash_attn") is None:
        return "flash-attn is not installed"
    from flash_attn import flash_attn_func

    window = (found[0], 0 if found[1] else found[0])
    return lambda q, k, v: flash_attn_func(*(x.transpose(1, 2) for x in (q, k, v)), window_size=window).transpose(1, 2)


def _natten(pattern: Pattern, n: int, device: str) -> Attention | str:
    """Neighbourhood attention: like local(w) away from the ends, where its windows shift inwards."""
    found = local_window(pattern)
    if not device.startswith("cuda"):
        return "it runs on CUDA only"
    if found is None:
        return "it computes local patterns only"
    if importlib.util.find_spec("natten") is None:
        return "NATTEN is not installed"
    from natten import na1d

    window, causal = found
    size = window + 1 if causal else 2 * window + 1
    return lambda q, k, v: na1d(*(x.transpose(1, 2) for x in (q, k, v)), kernel_size=size, is_causal=causal).transpose(
        1, 2
    )


RIVALS = (
    Rival("SDPA, full", _full),
    Rival("SDPA, dense mask", _masked),
    Rival("FlexAttention, compiled", _flex, trains=lambda device: device.startswith("cuda")),
    Rival("local-attention", _local_attention),
    Rival("Longformer (transformers)", _longformer),
    Rival("flash-attn", _flash_attn),
    Rival("NATTEN", _natten),
)
