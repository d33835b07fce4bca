"""What a sparse attention costs a model as it is: measured on calibration text, by which layers are chosen, and on other text.

Nothing is trained here. Rows of calibration text come from the training part; the price is told on the held-out part, and on a
second kind of text where one is given.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial

from torch import Tensor, nn

from jieyue.decoding.slots import positions_of
from jieyue.errors import InputError
from jieyue.hf.gates import gate_derivatives
from jieyue.hf.switched_layers import SwitchedLayers, switched_layers
from jieyue.hf.types import Tokenizer
from jieyue.json_values import Facts
from jieyue.listener import ProgressListener
from jieyue.tasks.config import RunConfig
from jieyue.tasks.sources import Sources
from jieyue.tasks.sparsify.costs import Costs, costs_of, encoded, price
from jieyue.tasks.sparsify.objectives import text_loss
from jieyue.tasks.sparsify.rows import Line, spread
from jieyue.tasks.sparsify.settings import SparseSettings
from jieyue.tasks.sparsify.task import TASK, batches_of

from .layer_choice import Choice, check_full, choose_layers, interleaved, most_prices
from .layer_notes import Notes
from .layer_options import Choosing

__all__ = [
    "ALL_FULL",
    "CHOSEN",
    "CHOSEN_HEADS",
    "OWN",
    "Measured",
    "Text",
    "TooLittleText",
    "measure_layers",
    "price_as_it_was",
    "rows_digest",
    "texts_of",
]

ALL_FULL, ALL_SPARSE, NO_LINEAR, OWN = (
    "every layer full",
    "no layer full",
    "chosen layers full, linear branch off",
    "every layer full, positions as they were",
)
CHOSEN, INTERLEAVED = "chosen layers full", "evenly spaced layers full"
CHOSEN_HEADS, INTERLEAVED_HEADS = "chosen heads full", "evenly spaced heads full"


class TooLittleText(InputError):
    """A text that fills no row."""


@dataclass(frozen=True)
class Text:
    """Rows of one kind of text as batches; ``name``: what they are called in the report; ``num_there``: rows that its source fills."""

    name: str
    batches: Sequence[dict[str, Tensor]]
    num_rows: int
    num_there: int


@dataclass(frozen=True)
class Measured:
    """``attention``: the chosen list, as ``use`` takes it; ``costs``: text -> setting -> what its rows cost there. ``heads``: the
    key-value heads of a layer that are chosen one by one (head h of layer n is number n·heads + h), 1 where layers are. ``guess``:
    the loss of a guess among all tokens of the vocabulary, in nats; 0 of an encoder. ``mixes``: setting -> what ``use`` takes for it,
    but for every layer full."""

    attention: str
    choice: Choice
    num_layers: int
    costs: Mapping[str, Mapping[str, Costs]] = field(default_factory=dict)
    heads: int = 1
    guess: float = 0.0
    mixes: Mapping[str, str] = field(default_factory=dict)

    def name(self, number: int) -> int | str:
        """A layer by its number, a head by its layer's and its own: "3.1"."""
        return number if self.heads == 1 else f"{number // self.heads}.{number % self.heads}"

    def settings(self, text: str) -> list[tuple[str, Costs]]:
        """The settings measured on a text, every layer full first."""
        return list(self.costs[text].items())


def texts_of(
    sources: Sources[Line],
    tokenizer: Tokenizer,
    settings: SparseSettings,
    choosing: Choosing,
    config: RunConfig,
) -> list[Text]:
    """Calibration, held-out and second text, each spread over its source; ``TooLittleText`` where one fills no row."""
    parts: list[tuple[str, Sequence[Line], int]] = [
        ("calibration", sources.train, choosing.calibration_tokens),
        ("held out", sources.held_out, choosing.price_tokens),
    ]
    if choosing.second_data:
        second, _ = TASK.read(choosing.second_data, settings, skip_bad=config.skip_bad)
        parts.append(("second text", second, choosing.price_tokens))
    found = []
    for name, lines, tokens in parts:
        rows, _ = TASK.encode(lines, tokenizer, settings)
        if not rows:
            text = f"{sum(len(line.text) for line in lines)} characters of {name} text that fill no row of {settings.row_tokens} tokens"
            more = "raise --limit" if config.limit is not None and name != "second text" else "add text"
            role = {"calibration": "data", "held out": "held_out"}.get(name, "second_data")
            raise TooLittleText(role, text, "more running text", f"{more}, or take shorter rows (--row-tokens)")
        some = spread(rows, tokens, settings.row_tokens)
        found.append(Text(name, batches_of(TASK, some, tokenizer, settings), len(some), len(rows)))
    return found


def rows_digest(texts: Sequence[Text]) -> str:
    """Identifies the rows by their tokens: a choice is kept for these alone."""
    found = hashlib.sha256()
    for text in texts:
        for batch in text.batches:
            found.update(text.name.encode() + batch["input_ids"].numpy().tobytes())
    return found.hexdigest()[:16]


def measure_layers(
    model: nn.Module,
    texts: Sequence[Text],
    attention: str,
    choosing: Choosing,
    listener: ProgressListener,
    notes: Notes | None = None,
) -> Measured:
    """Chooses by the first text, then measures every text with all, no, the chosen and evenly spaced layers (or heads) full.

    ``notes``: what an interrupted run has found of this already, and where what is found now is kept.
    Cost: a pass over the first text for each layer, up to ``choosing.candidates`` passes a round, and some over each text; layers
    before the switched one are not computed again, which saves half. Heads of a language model are ordered by one backward pass in
    place of a price each (``gates``).
    """
    head = getattr(model, "get_output_embeddings", lambda: None)()
    is_encoder, notes = head is None, notes or Notes()
    with switched_layers(model, attention, choosing.by_heads) as switched:  # type: ignore[arg-type]
        if not switched.free:
            raise InputError("sparsify(model)", "layers that all have a window of their own", "one that reads all keys")
        check_full(choosing.wanted, switched.free, choosing.noun)
        switched.keep_full(switched.free)
        known = {text.name: encoded(model, text.batches) if is_encoder else None for text in texts}
        choice = _chosen(model, switched, texts[0], known[texts[0].name], choosing, listener, notes)
        costs: dict[str, dict[str, Costs]] = {}
        with listener.progress("pricing") as update:
            for number, text in enumerate(texts):
                costs[text.name] = _settings(model, switched, text, known[text.name], choice, notes)
                update(number + 1, len(texts), {})
        guess = 0.0 if head is None else math.log(head.weight.shape[0])
        mixes = {name: switched.text(full) for name, full in _mixes(switched, choice).items() if name != ALL_FULL}
        return Measured(switched.text(choice.full), choice, len(switched.layers), costs, switched.heads, guess, mixes)


def _chosen(
    model: nn.Module,
    switched: SwitchedLayers,
    text: Text,
    known: Sequence[Tensor] | None,
    choosing: Choosing,
    listener: ProgressListener,
    notes: Notes,
) -> Choice:
    wanted, done, memory = choosing.wanted, [0], switched.memory
    if wanted.layers is not None:
        return choose_layers(lambda full: 0.0, switched.free, wanted)
    base = _costs_under(frozenset(switched.free), model, switched, text, known, notes)
    estimates = None
    if switched.heads > 1 and known is None:  # an encoder's cost is flat where all layers are full

        def rises() -> Facts:
            listener.say("Ordering the heads by the derivative of the loss")
            found = gate_derivatives(model, switched, text.batches, text_loss)
            return {str(head): rise for head, rise in found.items()}

        estimates = {int(head): math.expm1(rise) for head, rise in notes.noted("derivatives", rises).items()}
    left = wanted.count or 0
    most = most_prices(len(switched.free), left, choosing.candidates, estimated=estimates is not None)
    with listener.progress("choosing heads" if choosing.by_heads else "choosing layers") as update:

        def priced(full: frozenset[int]) -> Facts:
            switched.keep_full(full)
            return {"price": float(price(costs_of(model, text.batches, reference=known, memory=memory), base).value)}

        def asked(full: frozenset[int]) -> float:
            found: float = notes.noted(f"price, full: {sorted(full)}", partial(priced, full))["price"]
            done[0] += 1
            update(done[0], most, {"full": len(full), "price": found})
            return found

        def kept(full: frozenset[int]) -> None:
            switched.keep_full(full)
            if memory is not None:
                memory.keep()

        with nullcontext() if memory is None else memory.remembering():
            return choose_layers(
                asked,
                switched.free,
                wanted,
                candidates=choosing.candidates,
                noun=choosing.noun,
                estimates=estimates,
                kept=kept,
            )


def _costs_under(
    full: frozenset[int],
    model: nn.Module,
    switched: SwitchedLayers,
    text: Text,
    known: Sequence[Tensor] | None,
    notes: Notes,
    *,
    linear: bool = True,
) -> Costs:
    """What the text's rows cost with these layers full, as noted or measured now; ``linear``: with the linear branch of hybrids."""

    def measured() -> Facts:
        if linear:
            switched.keep_full(full)
        else:
            switched.without_linear(full)
        return costs_of(model, text.batches, reference=known).to_dict()

    branch = "" if linear else ", linear branch off"
    return Costs.from_dict(notes.noted(f"costs of {text.name}, full: {sorted(full)}{branch}", measured))


def _settings(
    model: nn.Module,
    switched: SwitchedLayers,
    text: Text,
    known: Sequence[Tensor] | None,
    choice: Choice,
    notes: Notes,
) -> dict[str, Costs]:
    """What the rows cost under each setting; one that was measured under another name is not measured again."""
    mixes = _mixes(switched, choice)
    found = {name: _costs_under(full, model, switched, text, known, notes) for name, full in mixes.items()}
    if switched.has_linear:
        full = frozenset(choice.full)
        found[NO_LINEAR] = _costs_under(full, model, switched, text, known, notes, linear=False)
    return found


def _mixes(switched: SwitchedLayers, choice: Choice) -> dict[str, frozenset[int]]:
    """Setting -> the layers, or heads, that are full."""
    found = {
        ALL_FULL: frozenset(switched.free),
        ALL_SPARSE: frozenset[int](),
        CHOSEN if switched.heads == 1 else CHOSEN_HEADS: frozenset(choice.full),
    }
    if 0 < len(choice.full) < len(switched.free):
        spaced = frozenset(interleaved(switched.free, len(choice.full)))
        found[INTERLEAVED if switched.heads == 1 else INTERLEAVED_HEADS] = spaced
    return found


def price_as_it_was(
    measured: Measured, texts: Sequence[Text], model: nn.Module, row_tokens: int, listener: ProgressListener
) -> Measured:
    """With the cost of the model whose positions were not stretched, where it can read rows of that length at all: a table of
    positions ends. Cost: a pass over each text."""
    limit = positions_of(model)
    if getattr(model.config, "rope_parameters", None) is None and limit is not None and row_tokens > limit:
        return measured
    listener.say("Pricing the model with its own positions")
    found = {text.name: {**measured.costs[text.name], OWN: costs_of(model, text.batches)} for text in texts}
    return replace(measured, costs=found)
