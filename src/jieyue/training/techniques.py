"""What there is to train in less memory, each marked exact or approximate, with what it saves and what it costs.

Exact: the update equals, in float64 to rounding, that of the same optimizer on the undivided batch with full attention.
Another optimizer: as exact, but not the update of AdamW, which the others are compared with. Approximate: anything else; the
name says so. Cheapest exact first, as a plan tries them. Plans and reports take names and labels from here.
"""

from __future__ import annotations

from dataclasses import dataclass

from jieyue.errors import InputError

__all__ = ["APPROXIMATE", "EXACT", "OTHER", "TECHNIQUES", "UPDATES", "Technique", "technique"]

EXACT = "exact"
OTHER = "exact, of another optimizer"
APPROXIMATE = "approximate"
UPDATES = (EXACT, OTHER, APPROXIMATE)


@dataclass(frozen=True, kw_only=True)
class Technique:
    """``name`` as plans and reports print it; ``where``: the Python object (its docstring states the conditions).

    ``update``: of ``UPDATES``.
    """

    name: str
    where: str
    update: str
    saves: str
    costs: str

    @property
    def exact(self) -> bool:
        return self.update == EXACT


TECHNIQUES = (
    Technique(
        name="chunked vocabulary loss",
        where="jieyue.training.vocabulary_loss.vocabulary_loss",
        update=EXACT,
        saves="the logits of the whole sequence, their softmax and gradient: one chunk of them is left",
        costs="nothing: the same three matrix products",
    ),
    Technique(
        name="micro-batches",
        where="jieyue.training.accumulation.accumulate",
        update=EXACT,
        saves="activations: those of one piece are left",
        costs="one gradient kept between pieces; small matrix products in small pieces",
    ),
    Technique(
        name="accumulating optimizer",
        where="jieyue.training.optimizer.AccumulatedOptimizer",
        update=EXACT,
        saves="activations, as micro-batches do, in a loop that is not ours",
        costs="one gradient kept between pieces",
    ),
    Technique(
        name="token budget",
        where="jieyue.training.microbatch.MicroBatch",
        update=EXACT,
        saves="padding: rows of like length share a piece, inside one effective batch",
        costs="nothing",
    ),
    Technique(
        name="activation checkpointing",
        where="jieyue.training.checkpointing.checkpointed",
        update=EXACT,
        saves="the insides of all layers but one",
        costs="one more forward pass of the layers",
    ),
    Technique(
        name="cached gradients",
        where="jieyue.training.cached_gradients.CachedGradients",
        update=EXACT,
        saves="activations, for losses that compare all rows of a batch (in-batch negatives)",
        costs="one more forward pass",
    ),
    Technique(
        name="update in backward (SGD with momentum)",
        where="jieyue.training.in_backward.update_in_backward",
        update=EXACT,
        saves="the gradient: a copy of all weights",
        costs="a loop of your own; labels counted first; no clipping, no Nesterov, no retry after an out-of-memory",
    ),
    Technique(
        name="step in backward (one piece)",
        where="jieyue.training.weightwise.step_in_backward",
        update=EXACT,
        saves="the gradient: that of a layer or two is left",
        costs="the whole batch in one piece; clipping by the norm of the step before, or none; no retry",
    ),
    Technique(
        name="SGD with momentum (another optimizer)",
        where="torch.optim.SGD",
        update=OTHER,
        saves="one of Adam's two moments",
        costs="another update than Adam's, at another learning rate",
    ),
    Technique(
        name="Adafactor (another optimizer)",
        where="transformers.optimization.Adafactor",
        update=OTHER,
        saves="Adam's two moments: a row and a column of each matrix are left",
        costs="another update than Adam's",
    ),
    Technique(
        name="Tiger (another optimizer)",
        where="jieyue.training.tiger.Tiger",
        update=OTHER,
        saves="one of Adam's two moments",
        costs="another update than Adam's: the sign of the momentum, as large as the weights are",
    ),
    Technique(
        name="update in backward (Tiger, another optimizer)",
        where="jieyue.training.in_backward.update_in_backward",
        update=OTHER,
        saves="the gradient: a copy of all weights, beside one of Adam's two moments",
        costs="another update than Adam's; labels counted first; no clipping, no retry after an out-of-memory",
    ),
    Technique(
        name="Muon with AdamW (another optimizer)",
        where="jieyue.training.muon.MuonAdamW",
        update=OTHER,
        saves="one of Adam's two moments of the matrices inside the model",
        costs="another update than Adam's; five small matrix products a matrix and update",
    ),
    Technique(
        name="Adam-mini (another optimizer)",
        where="jieyue.training.adam_mini.AdamMini",
        update=OTHER,
        saves="one of Adam's two moments: a number a head or output row is left",
        costs="another update than Adam's: one rate for all weights of a block",
    ),
    Technique(
        name="update in backward approx (AdamA)",
        where="jieyue.training.in_backward.update_in_backward_approx",
        update=APPROXIMATE,
        saves="the gradient: a copy of all weights",
        costs="a loop of your own; the second moment sums the pieces' squares; otherwise as for SGD with momentum",
    ),
    Technique(
        name="bf16 autocast (approx)",
        where="jieyue.training.accumulation.accumulate",
        update=APPROXIMATE,
        saves="about half of the activations",
        costs="eight bits of precision in matrix products",
    ),
    Technique(
        name="8-bit AdamW (approx)",
        where="bitsandbytes.optim.AdamW8bit",
        update=APPROXIMATE,
        saves="three quarters of Adam's two moments",
        costs="moments rounded to eight bits in blocks; needs pip install 'jieyue[eight-bit]'",
    ),
    Technique(
        name="low-rank adapters (approx)",
        where="jieyue.hf.low_rank.Adapter",
        update=APPROXIMATE,
        saves="gradient and moments of all weights but the adapters' and a small head's",
        costs="the update has the adapters' rank; needs pip install 'jieyue[adapters]'",
    ),
    Technique(
        name="four-bit base (approx)",
        where="jieyue.hf.four_bit.four_bit",
        update=APPROXIMATE,
        saves="seven eighths of the frozen weights under adapters",
        costs="weights rounded by about 9 % of their norm; each product makes its matrix first; needs pip install 'jieyue[four-bit]'",
    ),
    Technique(
        name="attention pattern (approx)",
        where="jieyue.hf.use.use",
        update=APPROXIMATE,
        saves="keys that the pattern leaves out: time, and memory where full attention keeps its scores",
        costs="a token sees the pattern's keys alone",
    ),
)


def technique(name: str) -> Technique:
    """The technique of that name; ``InputError`` for an unknown one."""
    for one in TECHNIQUES:
        if one.name == name:
            return one
    raise InputError("technique", repr(name), f"one of {', '.join(one.name for one in TECHNIQUES)}")
