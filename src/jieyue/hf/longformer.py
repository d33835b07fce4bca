"""transformers' Longformer attention as a bare function of q, k and v, for side-by-side timings.

The two sliding-chunk products and the softmax of ``LongformerSelfAttention``, without its projections and global tokens:

    out_i = Σ_{|i−j| ≤ w} softmax_j(D^-½ q_i·k_j) v_j        the same as ``attend(q, k, v, local(w))``

Source: I. Beltagy, M. Peters and A. Cohan, "Longformer: the long-document transformer" (arXiv 2004.05150).
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from jieyue.errors import InputError

__all__ = ["longformer_attention"]


def longformer_attention(window: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """A function (q, k, v), each [B, H, N, D] -> [B, H, N, D]: local attention over ``window`` keys to each side.

    It forms scores of [B, N, H, 2·window + 1] and copies of overlapping chunks, and has a backward pass by autograd.
    ``InputError`` where N is not a multiple of 2·window, which its chunks need.
    """
    from transformers import LongformerConfig
    from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

    if window < 1:
        raise InputError(f"longformer_attention(window={window}): expected at least 1")
    config = LongformerConfig(hidden_size=8, num_attention_heads=1, attention_window=[2 * window])
    module = LongformerSelfAttention(config, layer_id=0)

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if q.shape[2] % (2 * window):
            raise InputError(f"longformer_attention: found {q.shape[2]} positions, expected a multiple of {2 * window}")
        rows = [x.transpose(1, 2) for x in (q * q.shape[3] ** -0.5, k, v)]
        scores = module._sliding_chunks_query_key_matmul(rows[0], rows[1], window)
        weights = scores.softmax(-1)
        out: Tensor = module._sliding_chunks_matmul_attn_probs_value(weights, rows[2], window)
        return out.transpose(1, 2)

    return attention
