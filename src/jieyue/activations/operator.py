"""``gelu(x, approximate)``: the exact function, torch's tanh form, and any fitted form, forward, backward and twice backward.

    none      x·Φ(x)                                     torch's kernel
    tanh      0.5·x·(1 + tanh(√(2/π)(x + 0.044715·x³)))  torch's kernel, its derivative made safe for large arguments
    a form    x·(1 + s(x))/2, for polynomial gates x·σ(c₁x + c₃x³ + c₅x⁵)

All of them keep x alone for the backward pass and compute the rest again. Half precision is computed in float32 piece by piece,
and the polynomial's argument is held where the gate is full (``forms.limit``), so that no power overflows: torch's own derivative of
the tanh form is NaN from |x| = 2·10¹⁹ on (bfloat16 and float32), ours is 0 or 1. Values and derivatives are finite for finite
x (the exact kernel: up to half of the dtype's largest number).

Cost: on the CPU the work runs over pieces that stay in the cache, and its temporary memory is that of one piece. On an
accelerator it runs in one piece, with two temporaries of x's size.
Source: https://arxiv.org/abs/1606.08415 (GELU and both approximations).
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jieyue.autograd import Saved
from jieyue.errors import InputError

from .fitting import Fit
from .forms import FORMS, NAMED, Approximation, limit, push

__all__ = ["Activation", "Gelu", "apply", "gelu", "variant"]

PIECE = 2**17  # elements: a few float32 temporaries of 512 KiB
_SAFE = 64.0  # every gate is full long before
_SATURATED = 750.0  # σ(−750) is 0 in float64
_TANH = (2 * NAMED["tanh"].constants[0], 2 * NAMED["tanh"].constants[1], 0.0)
_GELU_TARGETS = ("gelu", "phi", "erf", "gelu'")

Variant = str | Approximation | Fit


def variant(approximate: Variant) -> str | Approximation:
    """``"none"``, ``"tanh"``, or an ``Approximation`` of GELU from a name, a text such as ``"tanh(a=0.8,b=0.035)"``, a Fit.

    ``InputError`` for an unknown name and for a fit of something else than GELU.
    """
    if approximate in ("none", "tanh"):
        return str(approximate)
    if isinstance(approximate, Fit):
        approximate = approximate.approximation
    if isinstance(approximate, str):
        try:
            approximate = Approximation.parse(approximate)
        except InputError as unknown:
            raise InputError(
                f"gelu(approximate={approximate!r}): expected none, {', '.join(NAMED)}, a Fit, or a form of "
                f"{', '.join(FORMS)} with its constants, such as 'tanh(a=0.8,b=0.035)'"
            ) from unknown
    if not isinstance(approximate, Approximation):
        raise InputError(
            f"gelu(approximate={approximate!r}): found {type(approximate).__name__}, expected a name or a Fit"
        )
    target, form = approximate.target, approximate.form
    if target.name not in _GELU_TARGETS:
        raise InputError(
            f"gelu(approximate={approximate}): found a fit of {target.name}, expected one of GELU; use Activation(fit)"
        )
    if not form.gate and target.name == "gelu'":
        raise InputError(
            f"gelu(approximate={approximate}): found a direct fit of GELU's derivative, expected one of GELU itself"
        )
    return approximate


def _check_floats(x: Tensor) -> None:
    if not x.is_floating_point():
        raise InputError(f"gelu(x): found {x.dtype}, expected a floating point tensor")


def gelu(x: Tensor, approximate: Variant = "none") -> Tensor:
    """GELU of ``x`` [...], any shape and float dtype, by the named or fitted one: ``approximate`` is what ``variant`` knows.

    Differentiable any number of times. Saves ``x`` alone. ``InputError`` for whole numbers and what ``variant`` does not know. Cost:
    ``jieyue bench activation``.

    >>> gelu(torch.tensor([-1.0, 0.0, 2.0]), "sigmoid")
    tensor([-0.1542,  0.0000,  1.9357])
    """
    _check_floats(x)
    chosen = variant(approximate)
    if chosen == "none":
        return F.gelu(x)
    if chosen == "tanh":
        return _Tanh.apply(x)
    assert isinstance(chosen, Approximation)
    return _applied(x, chosen, product=True)


def apply(x: Tensor, fit: Fit | Approximation) -> Tensor:
    """``fit``, an approximation of its own target (SiLU, Mish, softplus, anything), at ``x`` [...], with the same lean backward."""
    chosen = fit.approximation if isinstance(fit, Fit) else fit
    return _applied(x, chosen, product=chosen.form.gate and chosen.target.view == "product")


class Gelu(nn.Module):
    """``gelu`` as a module without parameters; ``approximate`` as there."""

    def __init__(self, approximate: Variant = "none") -> None:
        super().__init__()
        self.approximate = variant(approximate)

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.approximate, Approximation):
            return _applied(x, self.approximate, product=True)
        return F.gelu(x) if self.approximate == "none" else _Tanh.apply(x)

    def extra_repr(self) -> str:
        return str(self.approximate)


class Activation(nn.Module):
    """``apply`` as a module: any fit as a drop-in activation."""

    def __init__(self, fit: Fit | Approximation) -> None:
        super().__init__()
        self.approximation = fit.approximation if isinstance(fit, Fit) else fit

    def forward(self, x: Tensor) -> Tensor:
        return apply(x, self.approximation)

    def extra_repr(self) -> str:
        return f"{self.approximation} for {self.approximation.target.name}"


def _applied(x: Tensor, chosen: Approximation, *, product: bool) -> Tensor:
    _check_floats(x)
    form = chosen.form
    if product and form.polynomial is not None:
        return _PolynomialGate.apply(x, form.polynomial(*chosen.constants))
    return _Recomputed.apply(x, chosen, product)


def _pieces(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """The same flat pieces of each tensor: small on the CPU, one elsewhere."""
    length = PIECE if tensors[0].device.type == "cpu" else max(1, tensors[0].numel())
    return list(zip(*(tensor.reshape(-1).split(length) for tensor in tensors), strict=True))


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


class _Tanh(torch.autograd.Function):
    """torch's tanh form; its derivative at an argument held within ±64, where it is 0 or 1 to the last bit."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return F.gelu(x, approximate="tanh")

    @staticmethod
    def setup_context(ctx: Saved, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Saved, *grads: Tensor) -> Tensor:
        (x,), (grad,) = ctx.saved_tensors, grads
        if torch.is_grad_enabled():  # torch's own third derivative is NaN from |x| = 13 on in float32
            return (_wide(grad) * _slope(_wide(x), _TANH)).to(x.dtype)
        source, upstream = x.contiguous(), grad.contiguous()
        out = torch.empty_like(source)
        for piece, above, place in _pieces(source, upstream, out):
            place.copy_(torch.ops.aten.gelu_backward(above, piece.clamp(-_SAFE, _SAFE), approximate="tanh"))
        return out


class _WithPolynomial(Saved, Protocol):
    c: tuple[float, float, float]


class _PolynomialGate(torch.autograd.Function):
    """x·σ(q(y)) with q(y) = y(c₁ + y²(c₃ + y²c₅)) and y = x held within ±limit.

    The derivative is p + y·p(1 − p)·q′(y), p = σ(q): at the limit q′ is 0 or p is full, so nothing changes beyond it (where q is
    pushed on, ``forms.push``, the term left out is below 10⁻⁷ of the largest slope, 10⁻¹¹ for the fitted x⁵).
    A linear q is SiLU of another scale, x·σ(c₁x) = silu(c₁x)/c₁, whose derivative torch has as one kernel.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, c: tuple[float, float, float]) -> Tensor:
        source = x.contiguous()
        out = torch.empty_like(source)
        for piece, place in _pieces(source, out):
            wide = _wide(piece)
            place.copy_(_logit(wide, c).sigmoid_().mul_(wide))
        return out

    @staticmethod
    def setup_context(ctx: _WithPolynomial, inputs: tuple[Tensor, tuple[float, float, float]], output: Tensor) -> None:
        x, ctx.c = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: _WithPolynomial, *grads: Tensor) -> tuple[Tensor, None]:
        (x,), (grad,), c = ctx.saved_tensors, grads, ctx.c
        if torch.is_grad_enabled():  # a second derivative is wanted: the plain formula, which autograd can follow
            return (_wide(grad) * _slope(_wide(x), c)).to(x.dtype), None
        source, upstream = x.contiguous(), grad.contiguous()
        out = torch.empty_like(source)
        end = _SATURATED / abs(c[0] or 1)
        for piece, above, place in _pieces(source, upstream, out):
            wide = _wide(piece)
            if _linear(c):
                place.copy_(torch.ops.aten.silu_backward(_wide(above), wide.clamp(-end, end).mul_(c[0])))
            else:
                place.copy_(_slope_in_place(wide, c).mul_(above))
        return out, None


def _linear(c: tuple[float, float, float]) -> bool:
    return c[1] == c[2] == 0 and c[0] != 0


def _held(x: Tensor, c: tuple[float, float, float]) -> tuple[Tensor, Tensor]:
    """(y, y²) for x held within the limit."""
    end = limit(c)
    y = x.clamp(-end, end)
    return y, y * y


def _logit(x: Tensor, c: tuple[float, float, float]) -> Tensor:
    """q(y), a new tensor; a linear q may overflow to ±∞, where σ is still 1 or 0."""
    c1, c3, c5 = c
    if _linear(c):
        return x * c1
    y, square = _held(x, c)
    return _pushed(((square * c5).add_(c3).mul_(square) if c5 else square.mul_(c3)).add_(c1).mul_(y), x, c)


def _pushed(logit: Tensor, x: Tensor, c: tuple[float, float, float]) -> Tensor:
    """The logit, in place, steeper beyond the limit where the gate needs it (``forms.push``)."""
    slope = push(c)
    return logit.add_(F.softshrink(x, limit(c)), alpha=slope) if slope else logit


def _slope_in_place(x: Tensor, c: tuple[float, float, float]) -> Tensor:
    """p + y·p(1 − p)·q′, a new tensor; the same as ``_slope`` with fewer passes and temporaries."""
    c1, c3, c5 = c
    y, square = _held(x, c)
    if c5:
        inner = (square * c5).add_(c3)
        steep = torch.add(inner * 3, square, alpha=2 * c5).mul_(square).add_(c1)
        p = _pushed(inner.mul_(square).add_(c1).mul_(y), x, c).sigmoid_()
    else:
        steep = (square * (3 * c3)).add_(c1)
        p = _pushed(square.mul_(c3).add_(c1).mul_(y), x, c).sigmoid_()
    return torch.ops.aten.sigmoid_backward(steep.mul_(y), p).add_(p)


def _slope(x: Tensor, c: tuple[float, float, float]) -> Tensor:
    c1, c3, c5 = c
    if _linear(c):
        end = _SATURATED / abs(c1)
        y, square = x.clamp(-end, end), torch.zeros_like(x)
    else:
        y, square = _held(x, c)
    logit = y * (c1 + square * (c3 + square * c5))
    p = torch.sigmoid(logit + slope * F.softshrink(x, limit(c)) if (slope := push(c)) else logit)
    steep = c1 + square * (3 * c3 + square * (5 * c5))
    return p + y * (p * (1 - p)) * steep


class _WithForm(Saved, Protocol):
    chosen: Approximation
    product: bool


class _Recomputed(torch.autograd.Function):
    """Any form by its plain formula, computed again in the backward pass and differentiated there by autograd."""

    @staticmethod
    def forward(x: Tensor, chosen: Approximation, product: bool) -> Tensor:
        source = x.contiguous()
        out = torch.empty_like(source)
        for piece, place in _pieces(source, out):
            place.copy_(_plain(_wide(piece), chosen, product))
        return out

    @staticmethod
    def setup_context(ctx: _WithForm, inputs: tuple[Tensor, Approximation, bool], output: Tensor) -> None:
        x, ctx.chosen, ctx.product = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: _WithForm, *grads: Tensor) -> tuple[Tensor, None, None]:
        (x,), (grad,) = ctx.saved_tensors, grads
        if torch.is_grad_enabled():
            value = _plain(_wide(x), ctx.chosen, ctx.product)
            return torch.autograd.grad(value, x, _wide(grad), create_graph=True)[0], None, None
        source, upstream = x.contiguous(), grad.contiguous()
        out = torch.empty_like(source)
        for piece, above, place in _pieces(source, upstream, out):
            with torch.enable_grad():
                inside = _wide(piece).detach().requires_grad_()
                value = _plain(inside, ctx.chosen, ctx.product)
            place.copy_(torch.autograd.grad(value, inside, above.to(value.dtype))[0])
        return out, None, None


def _plain(x: Tensor, chosen: Approximation, product: bool) -> Tensor:
    if not product:
        return chosen(x)
    s = chosen.form.function(x, *chosen.constants)
    if chosen.form.gate or chosen.target.name == "erf":
        return x * ((s + 1) * 0.5)
    return x * s if chosen.target.name == "phi" else s
