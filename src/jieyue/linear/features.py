"""Feature maps: what makes attention linear. A map is one small value, a row of the table ``FEATURES``.

The weight of key j for query i is a polynomial of degree at most two in one inner product,

    w_ij = c0 + c1·s + c2·s²,   s = b(scale·q_i)·b(k_j),      (c0, c1, c2) ≥ 0,

which is an inner product of features φ(x) = [√c0, √c1·b(x), √c2·b(x)⊗b(x)]: sums over keys can be taken once and read by
every query. ``softmax`` normalises keys over the positions instead, and its weights are rows that sum to 1 by themselves.

| name | b(x) | (c0, c1, c2) | scale | source |
|---|---|---|---|---|
| elu | elu(x) + 1 | (0, 1, 0) | 1 | Katharopoulos et al., 2020 |
| softmax | query over features, key over positions | (0, 1, 0) | 1 | Shen et al., Efficient Attention, 2018 |
| cosine | x / ‖x‖ | (1, 1, 0) | none | J. Su, kexue.fm 7546, 2020: 1 + q·k ≥ 0 for unit vectors |
| relu | max(x, 0) | (0, 1, 0) | 1 | |
| taylor2 | x | (1, 1, ½) | D^−½ | 1 + s + s²/2 = ((1 + s)² + 1)/2 ≥ ½ |

elu(x) + 1 is computed as e^min(x,0) + max(x,0), which never subtracts: at x = −20 it is e^−20 in any floating type, where
elu(x) + 1 is 0. A vector of zeros has no direction: ``cosine`` takes b = 0, and so weight 1, for it (also for vectors
whose squared length underflows or overflows float32).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from jieyue.errors import InputError, near

__all__ = ["FEATURES", "IDENTITY", "FeatureMap", "resolve"]


@dataclass(frozen=True, kw_only=True)
class FeatureMap:
    """One feature map. ``FeatureMap(name="square", prepare=lambda x: x * x)`` is a complete new one.

    ``prepare``: b, differentiable torch from [..., D] to [..., any size], non-negative unless the polynomial makes the
    weights so. ``polynomial``: (c0, c1, c2). ``scale_power``: the scale is D**scale_power unless given; None refuses one.
    ``kernel``: b again and its pull-back (x, b(x), gradient) -> gradient, both without autograd. With it the map is
    taken chunk by chunk inside the operator; without it, once over the whole tensors and by autograd. ``over_positions``: keys
    are normalised over the positions, which no causal form can do.
    """

    name: str
    prepare: Callable[[Tensor], Tensor]
    polynomial: tuple[float, float, float] = (0.0, 1.0, 0.0)
    scale_power: float | None = 0.0
    kernel: tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor, Tensor], Tensor]] | None = None
    over_positions: bool = False

    def __post_init__(self) -> None:
        if len(self.polynomial) != 3 or min(self.polynomial) < 0 or max(self.polynomial) == 0:
            raise InputError(
                f"FeatureMap(name={self.name!r}): polynomial={self.polynomial}, expected three coefficients ≥ 0, not all 0"
            )

    def scale_for(self, scale: float | None, width: int) -> float:
        """The scale to use for queries of ``width`` features; ``InputError`` where the map allows none."""
        if scale is None:
            return 1.0 if self.scale_power is None else float(width) ** self.scale_power
        if self.scale_power is None:
            raise InputError(
                f"attend_linear: scale={scale} with features={self.name!r}, expected None: "
                f"this map looks at directions only, so a scale would change nothing"
            )
        if not math.isfinite(scale):
            raise InputError(f"attend_linear: scale={scale}, expected a finite number")
        return float(scale)


def _elu(x: Tensor) -> Tensor:
    return x.clamp(max=0).exp() + x.relu()


def _elu_fast(x: Tensor) -> Tensor:
    """e^min(x,0) in one pass: it is elu's derivative, for which torch has a kernel. A third faster than clamp and exp."""
    one = torch.ones((), dtype=x.dtype, device=x.device).expand_as(x)
    return torch.ops.aten.elu_backward(one, 1.0, 1.0, 1.0, False, x).add_(x.relu())


def _elu_pull(x: Tensor, b: Tensor, grad: Tensor) -> Tensor:
    """b' = e^min(x,0) = min(b, 1)."""
    return b.clamp(max=1).mul_(grad)


def _inverse_length(x: Tensor) -> Tensor:
    """1/‖x‖ [..., 1], 0 for a vector without direction."""
    square = (x * x).sum(-1, keepdim=True)
    usable = (square > 0) & square.isfinite()
    return torch.where(usable, torch.where(usable, square, 1.0).rsqrt(), 0.0)


def _direction(x: Tensor) -> Tensor:
    return x * _inverse_length(x)


def _direction_pull(x: Tensor, b: Tensor, grad: Tensor) -> Tensor:
    """(g − b(b·g)) / ‖x‖."""
    return torch.addcmul(grad, b, (b * grad).sum(-1, keepdim=True), value=-1).mul_(_inverse_length(x))


def _relu_pull(x: Tensor, b: Tensor, grad: Tensor) -> Tensor:
    return grad * (x > 0)


def _same(x: Tensor) -> Tensor:
    return x


def _same_pull(x: Tensor, b: Tensor, grad: Tensor) -> Tensor:
    return grad


def _softmax(x: Tensor) -> Tensor:
    return x.softmax(-1)


def _softmax_pull(x: Tensor, b: Tensor, grad: Tensor) -> Tensor:
    return torch.addcmul(b * grad, b, (b * grad).sum(-1, keepdim=True), value=-1)


FEATURES: dict[str, FeatureMap] = {
    "elu": FeatureMap(name="elu", prepare=_elu, kernel=(_elu_fast, _elu_pull)),
    "softmax": FeatureMap(name="softmax", prepare=_softmax, kernel=(_softmax, _softmax_pull), over_positions=True),
    "cosine": FeatureMap(
        name="cosine", prepare=_direction, polynomial=(1.0, 1.0, 0.0), scale_power=None,
        kernel=(_direction, _direction_pull),
    ),
    "relu": FeatureMap(name="relu", prepare=torch.relu, kernel=(torch.relu, _relu_pull)),
    "taylor2": FeatureMap(
        name="taylor2", prepare=_same, polynomial=(1.0, 1.0, 0.5), scale_power=-0.5, kernel=(_same, _same_pull)
    ),
}  # fmt: skip


IDENTITY = FeatureMap(name="identity", prepare=_same, kernel=(_same, _same_pull))  # of features that were taken before


def resolve(features: str | FeatureMap) -> FeatureMap:
    """The map of that name, or the map itself.

    >>> resolve("elu").name
    'elu'
    >>> resolve("elo")
    Traceback (most recent call last):
    jieyue.errors.InputError: features='elo': expected one of elu, softmax, cosine, relu, taylor2, ..., did you mean 'elu'?
    """
    if isinstance(features, FeatureMap):
        return features
    if isinstance(features, str) and features in FEATURES:
        return FEATURES[features]
    hint = near(str(features), FEATURES, cutoff=0.0)
    raise InputError(f"features={features!r}: expected one of {', '.join(FEATURES)}, or a FeatureMap{hint}")
