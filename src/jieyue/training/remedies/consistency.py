"""Two remedies of what the model says: R-Drop (it should say the same under any dropout) and unlikelihood (not again).

R-Drop: Liang et al. 2021 (2106.14448), in Su's scaling: half of the paper's loss, so that ε = 0 leaves the plain one.
Unlikelihood: Welleck et al. 2020 (1908.04319), the token form: each token that the target already had, and that is not the
label, is pushed down.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jieyue.errors import InputError
from jieyue.tally import Tally
from jieyue.training.objective import IGNORED, Objective

from .remedy import Remedy, Rows, check_strength
from .targets import bare, labels_of_rows, logits_of

__all__ = ["rdrop", "unlikelihood"]

_LEAST = 1e-5  # 1 − p is not taken below this, as in the authors' code


def rdrop(alpha: float = 1.0) -> Remedy:
    """A remedy: two passes with dropout of their own, ½(ℓ₁ + ℓ₂) + α·¼(KL(p₁‖p₂) + KL(p₂‖p₁)), summed over the labels.

    Classes that do not exclude one another (``labels`` [B, C] of floats in [0, 1]) have a Bernoulli distribution each, and the
    KLs of all are summed. A regression says no distribution: refused.

    Cost: two forward and two backward passes, and the activations of both. Without dropout the passes agree and it is the plain
    loss, at twice the cost.
    """
    check_strength("rdrop(alpha)", alpha)

    def run(objective: Objective, model: nn.Module, rows: Rows, step: int) -> Tally:
        several = _several(model, rows)
        tallies, said = [], []
        for _ in range(2):
            with logits_of(model) as found:
                tallies.append(objective(model, rows))
            said.append(_asked(found, model, rows) if several is None else _widened(found[-1]))
        first, second = said
        if several is None:
            first, second = first.log_softmax(-1), second.log_softmax(-1)
            difference = ((first.exp() - second.exp()) * (first - second)).sum()  # KL both ways
        else:
            if first.shape != several.shape:
                found_shape = f"labels {[*several.shape]} of floats and logits {[*first.shape]}"
                raise InputError("rdrop", found_shape, "one label per logit, in [0, 1]")
            difference = ((first.sigmoid() - second.sigmoid()) * (first - second)).sum()  # the same, of Bernoullis
        total = (tallies[0].total + tallies[1].total) / 2 + alpha / 4 * difference
        return Tally(total, tallies[0].weight)

    return Remedy(f"rdrop({alpha:g})", run)


def unlikelihood(alpha: float = 1.0) -> Remedy:
    """A remedy: total += α · Σ_t Σ_c −log(1 − p_t(c)) over the different target tokens c before t that are not label t.

    Cost: one gather of [B, T, T] from the log probabilities, which are computed once more; no pass.
    """
    check_strength("unlikelihood(alpha)", alpha)

    def run(objective: Objective, model: nn.Module, rows: Rows, step: int) -> Tally:
        with logits_of(model) as found:
            tally = objective(model, rows)
        labels = labels_of_rows(model, rows)
        if labels.ndim != 2:
            raise InputError(f"unlikelihood: found labels of shape {[*labels.shape]}, expected [B, T]")
        said = found[-1][:, : labels.shape[1]]
        said = said.to(torch.promote_types(said.dtype, torch.float32)).log_softmax(-1)
        again = said.gather(
            2, labels.clamp_min(0)[:, None, :].expand(-1, labels.shape[1], -1)
        )  # [B, t, s]: log p_t(y_s)
        less = torch.log((1 - again.exp()).clamp_min(_LEAST))
        total = tally.total - alpha * torch.where(_earlier(labels), less, 0.0).sum()
        return Tally(total, tally.weight)

    return Remedy(f"unlikelihood({alpha:g})", run)


def _asked(found: list[Tensor], model: nn.Module, rows: Rows) -> Tensor:
    """The last pass's logits where a label counts, [labels, V]: others as zeros, so that shapes stay fixed."""
    labels = labels_of_rows(model, rows)
    logits = _widened(found[-1] if labels.ndim == 1 else found[-1][:, : labels.shape[1]])
    return torch.where((labels != IGNORED)[..., None], logits, 0.0)


def _widened(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _several(model: nn.Module, rows: Rows) -> Tensor | None:
    """The labels [B, C] of classes that do not exclude one another; None for one class a row. A regression is refused."""
    labels = rows["labels"]
    if not labels.is_floating_point():
        return None
    config = getattr(bare(model), "config", None)
    kind = getattr(config, "problem_type", None)
    inside = bool(((labels >= 0) & (labels <= 1)).all())
    if labels.ndim < 2 or labels.shape[-1] == 1 or kind == "regression" or not inside:
        found = f"labels {[*labels.shape]} of floats" + ("" if kind is None else f", problem_type {kind!r}")
        raise InputError("rdrop", found, "classes: a regression says no distribution to compare")
    return labels


def _earlier(labels: Tensor) -> Tensor:
    """[B, t, s]: label s comes before t, counts, is the first of its kind, and is not label t, which counts too."""
    counts = labels != IGNORED
    same = labels[:, :, None] == labels[:, None, :]
    before = torch.ones(labels.shape[1], labels.shape[1], dtype=torch.bool, device=labels.device).tril(-1)
    first = ~(same & before).any(2) & counts
    return before & ~same & first[:, None, :] & counts[:, :, None]
