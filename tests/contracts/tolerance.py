"""The tolerance of every numerical contract, computed and never tuned.

For a dtype below float64, with e the exact value (the oracle in float64 on the same inputs) and p the plain computation in
the dtype (each step rounded to it), a result x passes when

    |x − e| ≤ 2·|p − e| + 8·eps·R      (gradients: 3·|p − e| + 8·eps·R),      |·| the largest entry, R = |e|

and R is the largest reference of the group: an output's own, or for gradients that of all gradients together.
float64: |x − e| ≤ 1e-12·max(1, R).
"""

import torch

__all__ = ["allowed_error", "assert_near", "largest"]


def largest(*tensors):
    """The largest finite magnitude among all entries."""
    return max((t.detach().double().abs().max().item() for t in tensors if t.numel()), default=0.0)


def allowed_error(exact, plain, reference, gradient=False):
    """How far a result of plain's dtype may be from ``exact`` (float64); ``reference`` is R."""
    if plain.dtype == torch.float64:
        return 1e-12 * max(1.0, reference)
    factor = 3 if gradient else 2
    return factor * largest(plain.double() - exact.double()) + 8 * torch.finfo(plain.dtype).eps * reference


def assert_near(found, exact, plain, *, gradient=False, names=None):
    """Each of ``found`` against ``exact`` (float64) and ``plain`` (the dtype under test), lists of tensors alike.

    Outputs have a reference R each, gradients (``gradient=True``) share the largest. Infinities must stand where the
    exact ones do and are left out of the difference.
    """
    names = names or [str(i) for i in range(len(exact))]
    exact, plain = [e.detach() for e in exact], [p.detach() for p in plain]
    finite = [torch.where(e.isinf(), 0.0, e) for e in exact]
    for name, x, e, p, f in zip(names, found, exact, plain, finite, strict=True):
        x = x.detach()
        assert x.shape == e.shape, f"{name}: shape {list(x.shape)}, expected {list(e.shape)}"
        assert torch.equal(x.isinf(), e.isinf()), f"{name}: infinities in other places"
        reference = largest(*finite) if gradient else largest(f)
        plain_finite = torch.where(e.isinf(), 0.0, p)
        allowed = allowed_error(f, plain_finite.to(p.dtype), reference, gradient)
        error = largest(torch.where(e.isinf(), 0.0, x.double()) - f.double())
        assert error <= allowed, f"{name}: error {error:.3e}, allowed {allowed:.3e}"
