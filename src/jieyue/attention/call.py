"""What an engine is asked to compute, and what it answers: the contract between ``attend`` and the engines.

Query row i has the position p = i + q_offset, key row j the position j. With segments, ``runs`` says for each row where the run
of its own segment begins, s, and ends, e (N = M, q_offset = 0 then); without, s = 0 and e = M. Row i sees key j where

    s ≤ j < e   and   key_mask[b, j]   and   (p − j in a band of ``pattern``   or   j − s < pattern.first
                                              or   (j − s < pattern.first_past and j ≤ p)   or   p − s < pattern.global_rows)

    logit_ij = softcap(scale·q_i·k_j) + offset_bias[h, i − j + M − 1],   softcap(x) = c·tanh(x/c), or x where c = 0
    lse_i    = log(e^sinks[h] + Σ_j e^logit_ij)                          (no sinks: without that term)
    out_i    = Σ_j kept_ij e^(logit_ij − lse_i) v_j

A row that sees no key has out = 0, lse = sinks[h] or −∞; a row of no segment (s = e) has out = 0, lse = −∞. What key_mask or
segments hide may hold anything, NaN too, and changes no result and no gradient.

Letters: B batch, H query heads, G key heads, N queries, M keys, D size of a query or key, V size of a value.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .lowering import lower
from .partial import Partial
from .pattern import Band, Pattern

__all__ = ["Call", "Engine", "Gradients", "Upstream"]


@dataclass(frozen=True, slots=True)
class Call:
    """The tensors of ``attend`` and its settings, validated; scale 0 = not asked yet.

    q [B, H, N, D]; k [B, G, M, D], v [B, G, M, V], all of one floating type (half precision on the CPU comes as float32 unless it
    is one of the engine's ``halves``); key_mask [B, M] bool, True = keep; runs [2, B, N] int32, the first and one past the last row
    of each row's own run (0, 0 for a row of no segment); sinks [H] and offset_bias [H or 1, N + M − 1] float32 (float64 for
    float64); softcap 0 = none.

    What an engine hears of the pattern, in the common case (``mixed`` False): ``num_first`` columns from the run's start on, seen
    by every row, or only by rows at or after them where ``first_is_past``; ``bands`` over the keys behind these columns alone
    (j ≥ s + num_first), so that no pair counts twice; and ``num_global`` rows from the run's start on that see their whole run.
    Where ``mixed`` is True the columns and the bands overlap otherwise (``pattern.parts`` cuts them up); refuse it or use parts.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    pattern: Pattern
    key_mask: Tensor | None = None
    scale: float = 0.0
    dropout: float = 0.0
    seed: int = 0
    q_offset: int = 0
    runs: Tensor | None = None
    sinks: Tensor | None = None
    softcap: float = 0.0
    offset_bias: Tensor | None = None

    @property
    def bands(self) -> tuple[Band, ...]:
        """The bands that show something to these queries: over the keys behind the first ``num_first`` of a run."""
        return lower(self.pattern, self.q.shape[2], self.k.shape[2], self.q_offset)

    @property
    def num_first(self) -> int:
        """How many keys from the run's start on are a part of their own."""
        return max(self.pattern.first, self.pattern.first_past)

    @property
    def first_is_past(self) -> bool:
        """Whether the first keys are seen only by rows at or after them."""
        return self.pattern.first_past > 0

    @property
    def num_global(self) -> int:
        """How many rows from the run's start on see their whole run."""
        return self.pattern.global_rows

    @property
    def mixed(self) -> bool:
        """Whether causal first keys meet first keys or bands that are not causal."""
        return self.first_is_past and not self.pattern.is_causal

    @property
    def is_blind(self) -> bool:
        """Whether the pattern shows no key to any of these queries."""
        return self.pattern.pairs(self.q.shape[2], self.k.shape[2], self.q_offset) == 0

    @property
    def asked(self) -> tuple[str, ...]:
        """Names of what the call has beyond bands: first, global, segments, sinks, softcap, offset_bias."""
        given = {
            "first": self.num_first > 0,
            "global": self.num_global > 0,
            "segments": self.runs is not None,
            "sinks": self.sinks is not None,
            "softcap": self.softcap > 0,
            "offset_bias": self.offset_bias is not None,
        }
        return tuple(name for name, present in given.items() if present)

    def beyond(self, engine: str, can: tuple[str, ...]) -> str | None:
        """The sentence with which an engine that ``can`` do these refuses the others; None where it can do all."""
        missing = [name for name in self.asked if name not in can]
        return f"the {engine} engine has no {' and no '.join(missing)}" if missing else None

    @property
    def lifted(self) -> Call:
        """The call with half precision on the CPU in float32, to be rounded once, at the end."""
        if self.q.device.type != "cpu" or self.q.dtype not in (torch.float16, torch.bfloat16):
            return self
        return replace(self, q=self.q.float(), k=self.k.float(), v=self.v.float())

    def taken_by(self, engine: Engine) -> Call:
        """The call as this engine gets it: half precision on the CPU in float32, unless it computes that type itself."""
        return self if self.q.dtype in engine.halves else self.lifted

    def with_sinks(self, whole: Partial) -> Partial:
        """Adds the sinks to the softmax over all keys: rows of a segment (without segments: all rows) get one each."""
        if self.sinks is None:
            return whole
        sinks = self.sinks.to(whole.lse)[:, None].expand_as(whole.lse)
        if self.runs is not None:
            sinks = sinks.masked_fill((self.runs[1] == 0)[:, None], -torch.inf)
        blind = torch.isneginf(whole.lse)
        own = whole.lse.masked_fill(blind, 0.0)
        lse = torch.where(blind, sinks, torch.logaddexp(own, sinks))
        share = (own - torch.logaddexp(own, sinks)).exp().masked_fill(blind, 0.0)
        return Partial(whole.out * share[..., None].to(whole.out.dtype), lse)


class Upstream(NamedTuple):
    """What backward is given beside the call: grad_out [B, H, N, V], the forward pass's lse [B, H, N], and
    delta [B, H, N] = grad_out·out − the gradient of lse; ``out`` where the latter is zero, else None."""

    grad_out: Tensor
    lse: Tensor
    delta: Tensor
    out: Tensor | None = None


class Gradients(NamedTuple):
    """dq, dk, dv in the call's type and, where the call has one, the gradient of offset_bias [H or 1, N + M − 1].

    The gradient of the sinks, −Σ e^(sinks[h] − lse)·delta, needs no engine: ``attend`` computes it from lse and delta.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    offset_bias: Tensor | None = None


class Engine(Protocol):
    """Who computes a call."""

    @property
    def name(self) -> str: ...

    @property
    def halves(self) -> tuple[torch.dtype, ...]:
        """The types of half precision that it computes on the CPU itself; others reach it as float32."""

    def refuses(self, call: Call) -> str | None:
        """None where the engine can run the call, else the sentence that says why not; never reads values."""

    def attend(self, call: Call) -> tuple[Tensor, Tensor]:
        """out [B, H, N, V] and lse [B, H, N] (float32, float64 for float64), as in this module's docstring."""

    def differentiate(self, call: Call, given: Upstream) -> Gradients:
        """The gradients of all inputs, given lse and delta of the whole softmax: dS_ij = P_ij (kept_ij grad_out_i·v_j − delta_i)."""

    def delta(self, grad_out: Tensor, out: Tensor) -> Tensor:
        """Σ grad_out·out over the last dimension, [B, H, N]."""
