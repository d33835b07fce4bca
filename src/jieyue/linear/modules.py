"""Fewer keys: attention whose keys and values are first mixed down to a few, by learned projections or by averages.

    Linformer   o = softmax(scale·q (E k)ᵀ) F v,   E and F learned [P, L]: P mixtures of up to L positions
    PooledKeys  the same with averages of ``rate`` neighbouring positions: ⌈M / rate⌉ of them, any length

Time O(N·P·(D + V) + M·P·D), memory beside the mixtures as ``attend``. Every mixture holds later positions too, so neither can
be causal: hiding a mixture from a query would hide earlier keys, and showing it shows later ones.

Sources: Wang et al., Linformer, 2020; down-sampling as in Funnel and PoWER-BERT (J. Su, kexue.fm 7546, discusses both).

Letters: B batch, H query heads, G key heads, N queries, M keys, D size of a query or key, V size of a value, L most positions,
P mixtures.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from jieyue.attention import attend, full
from jieyue.attention.checks import check_tensors
from jieyue.errors import InputError

__all__ = ["Linformer", "PooledKeys"]


class Linformer(nn.Module):
    """Attention over P learned mixtures of the keys, for up to ``num_positions`` of them; E and F are shared by all heads.

    forward(q [B, H, N, D], k [B, G, M, D], v [B, G, M, V], key_mask [B, M] True = keep) -> [B, H, N, V]. A masked or missing key
    gives nothing to any mixture, so padding changes nothing; a row without any key gives zeros. Position j always meets column
    j of E: the length is part of the model, and M beyond it is refused, as is ``causal=True``.
    """

    def __init__(self, num_positions: int, num_mixtures: int, *, causal: bool = False) -> None:
        super().__init__()
        _refuse_causal("Linformer", causal, "each mixture holds all positions")
        for name, value in (("num_positions", num_positions), ("num_mixtures", num_mixtures)):
            _check_count("Linformer", name, value)
        self.num_positions = num_positions
        self.key_mixtures = nn.Parameter(torch.randn(num_mixtures, num_positions) * num_positions**-0.5)
        self.value_mixtures = nn.Parameter(torch.randn(num_mixtures, num_positions) * num_positions**-0.5)

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None, scale: float | None = None
    ) -> Tensor:
        check_tensors("Linformer", q, k, v, key_mask)
        count = k.shape[2]
        if count > self.num_positions:
            raise InputError(
                f"Linformer: found {count} keys, expected at most the {self.num_positions} that it was made for"
            )
        k, v = _without_masked(k, key_mask), _without_masked(v, key_mask)
        few_keys = self.key_mixtures[:, :count].to(k.dtype) @ k
        few_values = self.value_mixtures[:, :count].to(v.dtype) @ v
        out = attend(q, few_keys, few_values, full(), scale=scale)
        assert isinstance(out, Tensor)
        return out


class PooledKeys(nn.Module):
    """Attention over averages of ``rate`` neighbouring keys and of their values; it has no parameters.

    forward as ``Linformer``'s, any M. An average is that of the keys which count; a window without any is not seen.
    ``causal=True`` is refused.
    """

    def __init__(self, rate: int, *, causal: bool = False) -> None:
        super().__init__()
        _refuse_causal("PooledKeys", causal, "an average holds the later positions of its window")
        _check_count("PooledKeys", "rate", rate)
        self.rate = rate

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None, scale: float | None = None
    ) -> Tensor:
        check_tensors("PooledKeys", q, k, v, key_mask)
        missing = -k.shape[2] % self.rate
        seen = k.new_ones(k.shape[0], k.shape[2], dtype=torch.bool) if key_mask is None else key_mask
        counts = pad(seen, (0, missing)).unflatten(1, (-1, self.rate)).sum(2)

        def averages(x: Tensor) -> Tensor:
            windows = pad(_without_masked(x, key_mask), (0, 0, 0, missing)).unflatten(2, (-1, self.rate))
            return windows.sum(3) / counts.clamp(min=1).to(x.dtype)[:, None, :, None]

        out = attend(q, averages(k), averages(v), full(), key_mask=counts > 0, scale=scale)
        assert isinstance(out, Tensor)
        return out


def _without_masked(x: Tensor, key_mask: Tensor | None) -> Tensor:
    return x if key_mask is None else x.masked_fill(~key_mask[:, None, :, None], 0.0)


def _refuse_causal(name: str, causal: bool, why: str) -> None:
    if causal:
        raise InputError(
            f"{name}(causal=True): found a causal layer, expected a bidirectional one: {why}, so earlier queries would see later "
            "keys; use a pattern, linear(elu), or local(w)+linear(elu)"
        )


def _check_count(name: str, argument: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{name}({argument}={value!r}): expected a whole number, at least 1")
