"""Linear attention, windows of it and the hybrid with near softmax, as the whole matrix of weights: the oracle of its tests.

o_i = Σ_j w_ij v_j / Σ_j w_ij,   zeros where Σ_j w_ij is 0
"""

import torch

F64 = torch.float64


def weights(q, k, name, scale=None):
    """sim(q_i, k_j) [B, H, N, M], from the articles' formulas."""
    if name == "cosine":
        unit = torch.nn.functional.normalize
        return 1 + unit(q, dim=-1) @ unit(k, dim=-1).transpose(-1, -2)
    q = q * (q.shape[-1] ** -0.5 if name == "taylor2" and scale is None else scale or 1.0)
    if name == "taylor2":
        s = q @ k.transpose(-1, -2)
        return 1 + s + s * s / 2
    phi = {"elu": lambda x: torch.where(x > 0, x + 1, x.clamp(max=0).exp()), "relu": torch.relu}[name]
    return phi(q) @ phi(k).transpose(-1, -2)


def allowed(n, m, direction, key_mask):
    """Which keys a query may read [B or 1, 1, n, m]: direction 1 the past, −1 the future, 0 all, as far as the mask keeps them."""
    d = torch.arange(n)[:, None] - torch.arange(m)
    sees = (d >= 0) if direction > 0 else (d <= 0) if direction < 0 else torch.ones(n, m, dtype=torch.bool)
    return sees[None, None] if key_mask is None else sees & key_mask[:, None, None, :]


def average(w, v):
    total = w.sum(-1, keepdim=True)
    return torch.where(total > 0, w @ v / total.where(total > 0, torch.ones_like(total)), torch.zeros_like(total))


def repeated(q, k, v):
    groups = q.shape[1] // k.shape[1]
    return k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)


def definition(q, k, v, name, direction=0, key_mask=None, scale=None):
    """``direction``: True or 1 causal, −1 anti-causal, False or 0 all keys."""
    k, v = repeated(q, k, v)
    if name == "softmax":  # queries over features, keys over positions
        shown = k if key_mask is None else k.masked_fill(~key_mask[:, None, :, None], -torch.inf)
        level = shown.logsumexp(-2, keepdim=True)
        keys = (shown - torch.where(level.isneginf(), 0.0, level)).exp()
        return (q * (scale or 1.0)).softmax(-1) @ (keys.transpose(-1, -2) @ v)
    sees = allowed(q.shape[2], k.shape[2], int(direction), key_mask)
    return average(weights(q, k, name, scale).masked_fill(~sees, 0.0), v)


def window_definition(q, k, v, name, window, causal, key_mask=None):
    k, v = repeated(q, k, v)
    n = q.shape[2]
    near = (torch.arange(n)[:, None] - torch.arange(n)).abs() <= window
    return average(weights(q, k, name).masked_fill(~(near & allowed(n, n, int(causal), key_mask)), 0.0), v)


def hybrid_definition(q, k, v, near, name, causal, key_mask=None):
    """``near`` [N, N] bool: where the softmax weight e^s is taken; the map's elsewhere."""
    k, v = repeated(q, k, v)
    sees = allowed(q.shape[2], k.shape[2], int(causal), key_mask)
    scores = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).masked_fill(~(sees & near), -torch.inf)
    level = scores.amax(-1, keepdim=True).detach().clamp(min=0.0)
    far = weights(q, k, name).masked_fill(~sees | near, 0.0)
    return average((scores - level).exp() + (-level).exp() * far, v)


def draw(n, m=None, heads=4, groups=2, d=5, dv=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(2, heads, n, d), (2, groups, m or n, d), (2, groups, m or n, dv)]
    return [torch.randn(shape, dtype=F64, generator=generator, requires_grad=True) for shape in shapes]


def draw_mask(n, seed):
    """Two rows of keys to keep, about a third left out; every fourth seed one row without any."""
    keep = torch.rand(2, n, generator=torch.Generator().manual_seed(seed)) > 0.3
    if seed % 4 == 0:
        keep[1] = False
    return keep


def assert_equal(out, expected, inputs, seed=1):
    """Values and gradients of ``inputs`` within 1e-12 of the largest."""
    upstream = torch.randn(out.shape, dtype=F64, generator=torch.Generator().manual_seed(seed))
    found = [(out, expected)]
    found += zip(
        torch.autograd.grad(out, inputs, upstream), torch.autograd.grad(expected, inputs, upstream), strict=True
    )
    largest = max(1.0, *(float(e.detach().abs().max()) for _, e in found))
    for a, e in found:
        assert (a - e).abs().max() <= 1e-12 * largest
