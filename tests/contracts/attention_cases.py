"""What the attention tests share: random inputs, and the definition of attention in plain torch, of any dtype."""

import torch

from jieyue.attention.dropout import kept, row_keys

__all__ = ["definition", "drop_weights", "gradients", "tensors"]


def tensors(shape, dtype=torch.float64, layout="bnhd", seed=0):
    """q, k, v as leaves, from ``shape`` = (B, H, G, N, M, D, V): [B, N, H, D] memory, or contiguous, or cut out of more."""
    batch, heads, groups, n, m, depth, width = shape
    generator = torch.Generator().manual_seed(seed)

    def one(h, rows, columns):
        if layout == "bnhd":
            x = torch.randn(batch, rows, h, columns, generator=generator, dtype=torch.float64).transpose(1, 2)
        elif layout == "bhnd":
            x = torch.randn(batch, h, rows, columns, generator=generator, dtype=torch.float64)
        else:  # "slice": no dimension contiguous, the last stride 2
            x = torch.randn(batch, h, rows + 1, 2 * columns + 3, generator=generator, dtype=torch.float64)
            x = x[:, :, 1:, 1 : 2 * columns + 1 : 2]
        return x.to(dtype).requires_grad_()

    return one(heads, n, depth), one(groups, m, depth), one(groups, m, width)


def drop_weights(seed, batch, heads, n, m, dropout, q_offset=0):
    """What dropout multiplies the weights by: [B, H, N, M] of 0 and 1 / (1 − p)."""
    numbers = torch.arange(batch * heads).view(batch, heads)
    keep = kept(row_keys(seed, numbers, torch.arange(q_offset, q_offset + n)), torch.arange(m), dropout)
    return keep.double() / (1 - dropout)


def definition(q, k, v, pattern, *, key_mask=None, scale=None, q_offset=0, drop=None, **more):
    """out and lse by the whole mask: matmul, softmax, matmul in the dtype of q; ``more``: segments, sinks, softcap, offset_bias."""
    repeats, (n, m) = q.shape[1] // k.shape[1], (q.shape[2], k.shape[2])
    keys, values = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
    segments, softcap = more.get("segments"), more.get("softcap")
    sees = visible(pattern, n, m, q_offset, segments).to(q.device)
    if key_mask is not None:
        sees = sees & key_mask[:, None, None, :]
    scores = q @ keys.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if more.get("offset_bias") is not None:
        bias = more["offset_bias"].to(q.dtype)
        at = torch.arange(n)[:, None] - torch.arange(m) + m - 1
        scores = scores + bias[:, at.to(q.device)]
    empty = ~sees.any(-1, keepdim=True)
    scores = torch.where(sees | empty, scores, -torch.inf)
    if more.get("sinks") is None:
        weights = torch.where(empty, 0.0, scores.softmax(-1))
        lse = torch.where(empty[..., 0], -torch.inf, scores.logsumexp(-1))
    else:
        absent = q.new_zeros(len(q), n, dtype=torch.bool) if segments is None else segments == -1
        sink = more["sinks"].to(q.dtype)[:, None, None].expand(*scores.shape[:3], 1)
        joined = torch.cat([scores.masked_fill(empty, -torch.inf), sink], -1)
        weights = joined.softmax(-1)[..., :-1]
        lse = torch.where(absent[:, None], -torch.inf, joined.logsumexp(-1))
    if drop is not None:
        weights = weights * drop.to(weights)
    return weights @ values, lse


def visible(pattern, n, m, q_offset=0, segments=None):
    """[B or 1, 1, N, M], pair by pair from the words of the contract: positions, first and global count from the run's start."""
    if segments is None:
        return pattern.mask(n, m, q_offset)[None, None]
    sees = torch.zeros(len(segments), 1, n, n, dtype=torch.bool)
    for b, ids in enumerate(segments.tolist()):
        for own in set(ids) - {-1}:
            run = slice(ids.index(own), n - ids[::-1].index(own))
            sees[b, 0, run, run] = pattern.mask(run.stop - run.start, run.stop - run.start)
    return sees


def gradients(out, lse, inputs, grad_out, grad_lse):
    """dq, dk, dv of ⟨out, grad_out⟩ + ⟨lse, grad_lse⟩, rows that saw nothing left out."""
    loss = (out * grad_out.to(out.dtype)).sum()
    if grad_lse is not None:
        loss = loss + (torch.where(lse.isinf(), 0.0, lse) * grad_lse.to(lse.dtype)).sum()
    return torch.autograd.grad(loss, inputs)
