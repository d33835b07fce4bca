"""The dense engine: the definition, computed with the whole score matrix. The oracle, and the engine for small sizes.

    s_ij = softcap(scale·q_i·k_j) + bias_ij where i sees j, −∞ elsewhere;  lse_i = log(e^sink + Σ_j e^s_ij);
    out_i = Σ_j kept_ij e^(s_ij − lse_i) v_j / (1 − dropout);   a query that sees nothing gives out = 0.

Memory B·H·N·M: refuses N·M > 512². Any device and any floating type.

Letters: B batch, H query heads, G key heads, R = H/G, N queries, M keys, D size of a query, V size of a value.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from jieyue.attention.call import Call, Gradients, Upstream
from jieyue.attention.diagonals import along_diagonals, sums_along_diagonals
from jieyue.attention.dropout import kept, row_keys
from jieyue.attention.partial import Partial
from jieyue.attention.pattern import shown

__all__ = ["DENSE", "MOST_PAIRS", "Dense"]

MOST_PAIRS = 512 * 512


class Dense:
    """The engine; ``scores`` is the part that both passes share. Differentiable itself, to any order."""

    name = "dense"
    halves: tuple[torch.dtype, ...] = ()

    def refuses(self, call: Call) -> str | None:
        n, m = call.q.shape[2], call.k.shape[2]
        if n * m > MOST_PAIRS:
            return f"the dense engine keeps all scores, and N·M = {n}·{m} is more than 512²"
        return None

    def attend(self, call: Call) -> tuple[Tensor, Tensor]:
        """out [B, H, N, V] and lse [B, H, N]."""
        call = self.without_hidden(call)
        scores = self.scores(call)
        blind = torch.isneginf(scores.amax(-1))
        lse = scores.masked_fill(blind[..., None], 0.0).logsumexp(-1).masked_fill(blind, -torch.inf)
        weights = (scores - _anchor(lse)[..., None]).exp()
        if call.dropout:
            weights = weights * self.keep_scale(call)
        out = (_grouped(weights, call.k.shape[1]) @ call.v[:, :, None]).flatten(1, 2)
        whole = call.with_sinks(Partial(out, lse))
        return whole.out, whole.lse

    def differentiate(self, call: Call, given: Upstream) -> Gradients:
        """Gradients, given lse and delta of the whole softmax (of which this call may be a part)."""
        call = self.without_hidden(call)
        q, k, v, groups, lse = call.q, call.k, call.v, call.k.shape[1], given.lse
        grad_out = _without(given.grad_out, _absent_rows(call))
        scores, slope = self._scores_and_slope(call)
        weights = (scores - _anchor(lse)[..., None]).exp()
        weights = weights.masked_fill(torch.isneginf(lse)[..., None], 0.0)
        grad_weights = (_grouped(grad_out, groups) @ v.transpose(-1, -2)[:, :, None]).flatten(1, 2)
        dropped = weights
        if call.dropout:
            keep = self.keep_scale(call)
            dropped, grad_weights = weights * keep, grad_weights * keep
        delta = _without(given.delta[..., None], _absent_rows(call))
        grad_logits = weights * (grad_weights - delta)
        of_bias = None
        if call.offset_bias is not None:
            of_bias = sums_along_diagonals(grad_logits).sum(0)
            of_bias = of_bias.sum(0, keepdim=True) if len(call.offset_bias) == 1 else of_bias
        grad_scores = grad_logits * call.scale if slope is None else grad_logits * slope * call.scale
        grad_scores = _grouped(grad_scores, groups)
        dq = (grad_scores @ k[:, :, None]).flatten(1, 2)
        dk = (grad_scores.transpose(-1, -2) @ _grouped(q, groups)).sum(2)
        dv = (_grouped(dropped, groups).transpose(-1, -2) @ _grouped(grad_out, groups)).sum(2)
        return Gradients(dq, dk, dv, of_bias)

    def delta(self, grad_out: Tensor, out: Tensor) -> Tensor:
        """Σ grad_out·out over the last dimension."""
        return torch.linalg.vecdot(grad_out, out)

    def scores(self, call: Call) -> Tensor:
        """[B, H, N, M], −∞ where a query does not see a key."""
        return self._scores_and_slope(call)[0]

    def _scores_and_slope(self, call: Call) -> tuple[Tensor, Tensor | None]:
        """Scores, and the derivative of softcap at them."""
        q, k, slope = call.q, call.k, None
        scores = (_grouped(q, k.shape[1]) @ k.transpose(-1, -2)[:, :, None]).flatten(1, 2) * call.scale
        if call.softcap:
            bent = (scores / call.softcap).tanh()
            scores, slope = bent * call.softcap, 1 - bent * bent
        if call.offset_bias is not None:
            scores = scores + along_diagonals(call.offset_bias, q.shape[2], k.shape[2]).to(scores)
        return scores.masked_fill(~self.sees(call)[:, None], -torch.inf), slope

    @staticmethod
    def sees(call: Call) -> Tensor:
        """Boolean [B or 1, N, M]: the pattern, the segments and the key mask together."""
        n, m, device = call.q.shape[2], call.k.shape[2], call.q.device
        i = torch.arange(call.q_offset, call.q_offset + n, device=device)
        j = torch.arange(m, device=device)
        if call.runs is None:
            found = call.pattern.sees(i, j)[None]
        else:
            start, stop = (end[..., None] for end in call.runs)  # [B, N, 1]
            from_start, own, rows = j - start, (j >= start) & (j < stop), i[:, None] - start
            found = (
                shown(call.pattern.bands, i, j) | (from_start < call.pattern.first) | (rows < call.pattern.global_rows)
            )
            found = (found | ((from_start < call.pattern.first_past) & (j <= i[:, None]))) & own
        return found if call.key_mask is None else found & call.key_mask[:, None, :]

    @staticmethod
    def without_hidden(call: Call) -> Call:
        """Zeros where nobody looks, so that what stands there (NaN, infinities) takes no part: 0 · NaN is NaN."""
        hidden = None if call.key_mask is None else ~call.key_mask
        absent = _absent_rows(call)
        if absent is not None and call.runs is not None and call.runs.shape[2] == call.k.shape[2]:
            hidden = absent if hidden is None else hidden | absent
        return replace(call, q=_without(call.q, absent), k=_without(call.k, hidden), v=_without(call.v, hidden))

    @staticmethod
    def keep_scale(call: Call) -> Tensor:
        """What each weight is multiplied by: 0, or 1/(1 − dropout)."""
        q = call.q
        i = torch.arange(call.q_offset, call.q_offset + q.shape[2], device=q.device)
        heads = torch.arange(q.shape[0] * q.shape[1], device=q.device).view(q.shape[:2])
        keep = kept(row_keys(call.seed, heads, i), torch.arange(call.k.shape[2], device=q.device), call.dropout)
        return keep.to(q.dtype) / (1 - call.dropout)


DENSE = Dense()


def _anchor(lse: Tensor) -> Tensor:
    """lse, with 0 for rows that see nothing: −∞ − 0 stays −∞ and its exponential 0, where −∞ + ∞ would be NaN."""
    return torch.where(torch.isneginf(lse), 0.0, lse)


def _grouped(x: Tensor, groups: int) -> Tensor:
    """[B, H, ...] as [B, G, R, ...]: query head h reads key head h // R."""
    return x.unflatten(1, (groups, x.shape[1] // groups))


def _absent_rows(call: Call) -> Tensor | None:
    """[B, N], True for a row of no segment."""
    return None if call.runs is None else call.runs[1] == 0


def _without(x: Tensor, hidden: Tensor | None) -> Tensor:
    """x [B, H, N, D] with zeros in the rows that ``hidden`` [B, N] names."""
    return x if hidden is None else x.masked_fill(hidden[:, None, :, None], 0.0)
