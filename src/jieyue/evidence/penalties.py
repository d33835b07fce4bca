"""Article 5's other half: is what a gradient penalty or FGM adds to the gradient what it says? Ours, and bert4torch's.

One example of distinct tokens through a small masked reader in float64, where all customary forms agree: with E the embedding
table, ℓ the mean loss and ε from the settings,

    penalty   ℓ + ½ε ‖∂ℓ/∂E‖²                     FGM   ℓ + ℓ(E + δ),  δ = ε g/‖g‖ constant,  g = ∂ℓ/∂E

The oracle needs first derivatives only: central differences of these along random directions of all weights, less those of ℓ.
What a way adds to the plain gradient is read along the same directions. bert4torch's callback runs as it is, on a trainer that
does what its own does (one backward pass a step).
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from jieyue.attention import attend, full
from jieyue.json_values import Facts
from jieyue.report.amounts import Given
from jieyue.tally import Tally
from jieyue.training.objective import Batch, Objective, token_loss
from jieyue.training.remedies.adversarial import fgm, penalize_gradient
from jieyue.training.remedies.remedy import Remedy

from .claims import FAILS, HOLDS, Cell, Claim, Pairs, Place, Verdict

__all__ = ["CLAIMS"]

KEY = "penalties-are-gradients"
PENALTY, FGM = "gradient penalty", "FGM, clean loss added"
OURS, PEER = "ours", "bert4torch"
EQUAL = 1e-4  # relative error of the added gradient: what central differences in float64 leave
STEP = 1e-5
_NAMES = {PENALTY: "gradient_penalty", FGM: "fgm"}  # as bert4torch calls them

Loss = Callable[["_Reader"], Tensor]


class _Reader(nn.Module):
    """Word and place embeddings, one layer of attention, one of feed-forward, an untied head."""

    def __init__(self, num_words: int, width: int, num_heads: int, length: int) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(num_words, width)
        self.places = nn.Parameter(torch.randn(length, width))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.head, self.num_heads = nn.Linear(width, num_words), num_heads

    def get_input_embeddings(self) -> nn.Module:
        return self.word_embeddings

    def forward(self, ids: Tensor) -> Tensor:
        x = self.word_embeddings(ids) + self.places
        q, k, v = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        seen = attend(q, k, v, full())
        assert isinstance(seen, Tensor)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        return self.head(x + self.down(torch.tanh(self.up(x))))


def _objective(model: nn.Module, batch: Batch) -> Tally:
    return token_loss(model(batch["input_ids"]), batch["labels"])


def _measure(cell: Cell, place: Place) -> Facts:
    """Remedy -> way -> relative error and ratio of what it adds; or why a way could not be measured."""
    asked = cell.settings
    torch.manual_seed(cell.seed)
    length, words = asked["tokens"], asked["words"]
    model = _Reader(words, asked["width"], 2, length).double()
    batch = {"input_ids": torch.randperm(words)[None, :length], "labels": torch.randint(words, (1, length))}
    directions = [[torch.randn_like(p) for p in model.parameters()] for _ in range(asked["directions"])]
    plain = _own(model, batch)
    found: dict[str, Facts] = {}
    for name, remedy, loss in (
        (PENALTY, penalize_gradient(asked["epsilon"]), _penalty(batch, asked["epsilon"])),
        (FGM, fgm(asked["epsilon"], add_clean=True), _moved(model, batch, asked["epsilon"])),
    ):
        oracle = torch.stack([_along(model, loss, direction) for direction in directions])
        added = {OURS: partial(_own, model, batch, remedy), PEER: _peer(model, batch, name, asked["epsilon"])}
        found[name] = {way: _compared(get, plain, directions, oracle) for way, get in added.items()}
        if "why" not in found[name][PEER]:
            found[name][PEER]["version"] = version(PEER)
    return found


def _compared(
    get: Callable[[], list[Tensor]] | str,
    plain: Sequence[Tensor],
    directions: Sequence[Sequence[Tensor]],
    oracle: Tensor,
) -> Facts:
    if isinstance(get, str):
        return {"why": get}
    added = [gradient - base for gradient, base in zip(get(), plain, strict=True)]
    along = torch.stack([_product(added, direction) for direction in directions])
    base = torch.stack([_product(plain, direction) for direction in directions])
    return {
        "error": float((along - oracle).norm() / oracle.norm()),
        "plain again": float((along - base).norm() / base.norm()),
    }


def _own(model: nn.Module, batch: Batch, remedy: Remedy | None = None) -> list[Tensor]:
    """The gradient of one update of ours: of the total over the weight."""
    model.train()
    loss = _mean(_objective if remedy is None else remedy(_objective), model, batch)
    return list(torch.autograd.grad(loss, list(model.parameters())))


def _mean(objective: Objective, model: nn.Module, batch: Batch) -> Tensor:
    tally = objective(model, batch)
    assert isinstance(tally.total, Tensor)
    return tally.total / tally.weight


def _loss(model: nn.Module, batch: Batch) -> Tensor:
    return _mean(_objective, model, batch)


def _slope(model: _Reader, batch: Batch) -> Tensor:
    (slope,) = torch.autograd.grad(_loss(model, batch), [model.word_embeddings.weight])
    return slope


def _penalty(batch: Batch, epsilon: float) -> Loss:
    return lambda model: 0.5 * epsilon * _slope(model, batch).square().sum()


def _moved(model: _Reader, batch: Batch, epsilon: float) -> Loss:
    slope = _slope(model, batch)
    move = epsilon * slope / slope.norm()

    def loss(other: _Reader) -> Tensor:
        moved = copy.deepcopy(other)
        with torch.no_grad():
            moved.word_embeddings.weight.add_(move)
            return _loss(moved, batch)

    return loss


def _along(model: _Reader, loss: Loss, direction: Sequence[Tensor]) -> Tensor:
    """The central difference of ``loss`` along a direction of all weights."""
    values = []
    for sign in (1, -1):
        other = copy.deepcopy(model)
        with torch.no_grad():
            for weight, step in zip(other.parameters(), direction, strict=True):
                weight.add_(sign * STEP * step)
        values.append(loss(other).detach())
    return (values[0] - values[1]) / (2 * STEP)


def _product(one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    return torch.stack([(a * b).sum() for a, b in zip(one, other, strict=True)]).sum()


def _peer(model: nn.Module, batch: Batch, name: str, epsilon: float) -> Callable[[], list[Tensor]] | str:
    """bert4torch's callback on a copy of the model, or why it is not there."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from bert4torch.callbacks import AdversarialTraining
    except Exception as error:  # it imports much that may be missing or of another version
        return f"bert4torch cannot be imported: {error}"

    def gradients() -> list[Tensor]:
        other = copy.deepcopy(model)

        def train_step(ids: Tensor, labels: Tensor) -> tuple[None, Tensor, Facts]:
            loss = _loss(other, {"input_ids": ids, "labels": labels})
            loss.backward(retain_graph=True)
            return None, loss, {}

        callback = AdversarialTraining(_NAMES[name], {"epsilon": epsilon, "emb_name": "word_embeddings"})
        callback.trainer, callback.model = SimpleNamespace(train_step=train_step, retain_graph=False), other
        callback.on_train_begin()
        callback.train_step(batch["input_ids"], batch["labels"])
        return [weight.grad for weight in other.parameters() if weight.grad is not None]

    return gradients


def _judge(results: Pairs) -> Verdict:
    """Ours alone decides; bert4torch's rows are a peer's: told, or told why they are not there."""
    rows: list[list[Given]] = []
    for name in (PENALTY, FGM):
        for way in (OURS, PEER):
            found = {cell.seed: numbers[name][way] for cell, numbers in results}
            missing = sorted({one["why"] for one in found.values() if "why" in one})
            if missing:
                rows.append([name, way, None, None, f"cannot be tested here ({'; '.join(missing)})"])
                continue
            error, again = (max(one[number] for one in found.values()) for number in ("error", "plain again"))
            release = next((one["version"] for one in found.values() if "version" in one), "")
            rows.append([name, f"{way} {release}".strip(), f"{error:.1e}", f"{again:.1e}", _words(error, again)])
    worst = max(numbers[name][OURS]["error"] for _, numbers in results for name in (PENALTY, FGM))
    why = f"what ours add differs from the finite differences by at most {worst:.1e} of them; {EQUAL:g} is allowed"
    columns = ["remedy", "way", "largest error of what it adds", "its distance from the plain gradient", "in words"]
    return Verdict(HOLDS if worst <= EQUAL else FAILS, why, columns, rows)


def _words(error: float, again: float) -> str:
    if error <= EQUAL:
        return "the derivative of what it says"
    return "the plain gradient once more" if again <= EQUAL else "something else"


CLAIMS = (
    Claim(
        key=KEY,
        article=5,
        sentence="The gradient that a penalty or FGM adds is the derivative of what it says (finite differences, float64)",
        articles_number="not asked; its Keras code lets the framework differentiate twice",
        cells=lambda scale, seeds: [
            Cell(KEY, {"tokens": 12, "words": 40, "width": 16, "epsilon": 0.5, "directions": 8}, seed) for seed in seeds
        ],
        measure=_measure,
        judge=_judge,
    ),
)
