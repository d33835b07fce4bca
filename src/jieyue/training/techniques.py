"""What there is to train in less memory, each marked exact or approximate, with what it saves and what it costs.

Exact: the update equals, in float64 to rounding, that of the same optimizer on the undivided batch. Approximate: anything
else; the name says so, or the optimizer is another one. Cheapest exact first, as a plan tries them.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["TECHNIQUES", "Technique"]


@dataclass(frozen=True, kw_only=True)
class Technique:
    """``name`` as plans and reports print it; ``where``: the Python object (its docstring states the conditions)."""

    name: str
    where: str
    exact: bool
    saves: str
    costs: str


TECHNIQUES = (
    Technique(
        name="chunked vocabulary loss",
        where="jieyue.training.vocabulary_loss.vocabulary_loss",
        exact=True,
        saves="the logits of the whole sequence, their softmax and gradient: one chunk of them is left",
        costs="nothing: the same three matrix products",
    ),
    Technique(
        name="micro-batches",
        where="jieyue.training.accumulation.accumulate",
        exact=True,
        saves="activations: those of one piece are left",
        costs="one gradient kept between pieces; small matrix products in small pieces",
    ),
    Technique(
        name="accumulating optimizer",
        where="jieyue.training.optimizer.AccumulatedOptimizer",
        exact=True,
        saves="activations, as micro-batches do, in a loop that is not ours",
        costs="one gradient kept between pieces",
    ),
    Technique(
        name="token budget",
        where="jieyue.training.microbatch.MicroBatch",
        exact=True,
        saves="padding: rows of like length share a piece, inside one effective batch",
        costs="nothing",
    ),
    Technique(
        name="activation checkpointing",
        where="jieyue.training.checkpointing.checkpointed",
        exact=True,
        saves="the insides of all layers but one",
        costs="one more forward pass of the layers",
    ),
    Technique(
        name="cached gradients",
        where="jieyue.training.cached_gradients.CachedGradients",
        exact=True,
        saves="activations, for losses that compare all rows of a batch (in-batch negatives)",
        costs="one more forward pass",
    ),
    Technique(
        name="update in backward (SGD with momentum)",
        where="jieyue.training.in_backward.update_in_backward",
        exact=True,
        saves="the gradient: a copy of all weights",
        costs="labels counted first; no clipping, no Nesterov, no retry after an out-of-memory",
    ),
    Technique(
        name="update in backward approx (AdamA)",
        where="jieyue.training.in_backward.update_in_backward_approx",
        exact=False,
        saves="the gradient: a copy of all weights",
        costs="the second moment sums the pieces' squares; as above otherwise",
    ),
    Technique(
        name="bf16 autocast (approx)",
        where="jieyue.training.accumulation.accumulate",
        exact=False,
        saves="about half of the activations",
        costs="eight bits of precision in matrix products",
    ),
    Technique(
        name="Adafactor (another optimizer)",
        where="torch.optim.Adafactor",
        exact=False,
        saves="Adam's two moments: a row and a column of each matrix are left",
        costs="another update than Adam's",
    ),
    Technique(
        name="8-bit AdamW (approx)",
        where="bitsandbytes.optim.AdamW8bit",
        exact=False,
        saves="three quarters of Adam's two moments",
        costs="moments rounded to eight bits in blocks; needs pip install 'jieyue[eight-bit]'",
    ),
)
