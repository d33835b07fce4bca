"""The report of a sparse attention: which layers stay full and what it costs, on each text and by position."""

from __future__ import annotations

from collections.abc import Sequence

from jieyue.report import Picture, Report
from jieyue.report.amounts import Given
from jieyue.tasks.sparsify.costs import Costs, price
from jieyue.tasks.sparsify.task import position_edges

from .layer_options import Choosing
from .layer_prices import CHOSEN, CHOSEN_HEADS, Measured

__all__ = [
    "ALIKE",
    "NO_LINEAR_TRAINED",
    "SECTION",
    "TRAINED",
    "choice_section",
    "positions_section",
    "prices_section",
    "unlearned_note",
]

SECTION, SECTION_OF_HEADS, TRAINED = "Layers that stay full", "Heads that stay full", "sparse, trained"
NO_LINEAR_TRAINED = "sparse, trained, linear branch off"  # arXiv 2510.05901: in many trained hybrids it does nothing
_LAYERS = ("full layers", "layer made sparse", "layer made sparse alone", "Layer by layer", "Price by full layers")
_HEADS = ("full heads", "head made sparse", "head made sparse alone", "Head by head", "Price by full heads")
ALIKE = "against the full model trained alike"
TOLD = (CHOSEN, CHOSEN_HEADS, TRAINED)
_HOW = "perplexity against the full model on the same rows; 95 % bootstrap over rows"
_HOW_ALIKE = "perplexity against the full model trained alike, on the same rows; 95 % bootstrap over rows"
_LIKENESS = "1 − cos of a row's mean state and the full model's; 95 % bootstrap over rows"


def choice_section(report: Report, measured: Measured, calibration_rows: int, row_tokens: int) -> None:
    """The chosen layers or heads, the joint price of every round, and each one's price alone; or the layers that were told."""
    by_heads, choice = measured.heads > 1, measured.choice
    full, made, alone_made, each, drawn = _HEADS if by_heads else _LAYERS
    section = report.section(SECTION_OF_HEADS if by_heads else SECTION)
    section.fact("attention", measured.attention, how="an entry a layer, as jieyue.use takes it")
    number, those = measured.num_layers * measured.heads, ", ".join(str(measured.name(one)) for one in choice.full)
    section.fact(full, f"{len(choice.full)} of {number}", how=those, key=True)
    if by_heads:
        section.note(
            "A head 3.1 is key-value head 1 of layer 3, both counted from 0, with the query heads that read it."
        )
    if not choice.path:
        section.fact("chosen", "as asked", how="--full-layers named them; no price was asked for")
        return
    how = f"by the joint price on {calibration_rows} rows of {row_tokens} tokens of the training part"
    section.fact("prices asked for", choice.tried, how=how)
    cells: list[list[Given]] = [
        [left, "none" if place == 0 else measured.name(choice.order[place - 1]), f"{100 * joint:+.2f} %"]
        for place, (left, joint) in enumerate(choice.path)
    ]
    section.table([full, made, "joint price"], cells, title="Round by round")
    single = choice.alone or choice.estimates
    if single:
        alone: list[list[Given]] = [[measured.name(one), f"{100 * own:+.3f} %"] for one, own in single.items()]
        summed = 100 * sum(single[layer] for layer in choice.order)
        together = 100 * choice.path[-1][1]
        those = "heads" if by_heads else "layers"
        note = (
            f"The prices of the {len(choice.order)} {those} made sparse add up to {summed:+.2f} %; together they cost "
            f"{together:+.2f} %."
        )
        if choice.estimates:
            section.note(
                "Heads were not priced alone: their prices alone are first-order estimates from one backward pass, which only order "
                "what is tried."
            )
        section.table([alone_made, "price"], alone, title=each, note=note)
        points = {float(left): 100 * joint for left, joint in choice.path}
        is_loss = next(iter(measured.costs["calibration"].values())).is_loss
        unit = "% of perplexity" if is_loss else "% of 1 − cos"
        section.picture(Picture.lines(drawn, {"calibration text": points}, x=full, y=unit))


def unlearned_note(report: Report, measured: Measured) -> None:
    """Says of a model that knows a text no better than a guess that prices on it mean nothing; of others nothing."""
    for text, costs in measured.costs.items():
        base = next(iter(costs.values()))
        if base.is_loss and base.mean >= measured.guess:
            report.section(SECTION_OF_HEADS if measured.heads > 1 else SECTION).note(
                f"{text}: the full model's loss is {base.mean:.2f} nats, no better than a guess "
                f"among all tokens of its vocabulary ({measured.guess:.2f}): it has not learned this kind of text, and a price there "
                "means nothing."
            )


def positions_section(report: Report, choosing: Choosing, positions: int) -> None:
    """How the model got more positions than it was trained with; nothing where it keeps its own."""
    if choosing.positions == "none":
        return
    section = report.section("Positions")
    section.fact(
        "positions", positions, how=f"{choosing.positions}, {choosing.position_factor:g} times as many as before"
    )
    if choosing.positions == "dynamic":
        section.note(
            "Dynamic positions depend on the longest row that was read: keys that a cache keeps were turned for a shorter one, and a "
            "long row changes those that follow, until one is shorter than the trained length. Written step by step and read in "
            "one pass, a text past the trained length is then not the same."
        )


def prices_section(
    report: Report, title: str, text: str, settings: Sequence[tuple[str, Costs]], row_tokens: int, *, key: bool = True
) -> None:
    """Loss and price of each setting, the first one the base; then by position. ``key``: the price stands at the report's top."""
    section, (_, base) = report.section(title), settings[0]
    kind = ("loss", "nats") if base.is_loss else ("mean cost", "")
    cells: list[list[Given]] = []
    for name, costs in settings:
        own = price(costs, base)
        cells.append(
            [name, _told(costs.mean), f"{100 * own.value:+.2f} % [{100 * own.low:+.2f}, {100 * own.high:+.2f}]"]
        )
        if name in TOLD:
            loss_how = _HOW_ALIKE if text.endswith(ALIKE) else _HOW
            how = f"{loss_how if base.is_loss else _LIKENESS}, {len(base.rows)} rows of {row_tokens} tokens"
            section.fact(f"{name}, on {text}", own, "share", how, key=key and text != "calibration")
    section.table(["setting", kind, "price"], cells, title=f"On {text}")
    edges = position_edges(row_tokens)
    found = [[_told(costs.between(*edge)) for _, costs in settings] for edge in edges]
    table = [[f"{first} to {stop - 1}", *each] for (first, stop), each in zip(edges, found, strict=True)]
    section.table(["position", *(name for name, _ in settings)], table, title=f"By position, on {text}")
    curves = {
        name: {
            float(stop): each[place] for (_, stop), each in zip(edges, found, strict=True) if each[place] is not None
        }
        for place, (name, _) in enumerate(settings)
    }
    section.picture(Picture.lines(f"By position, on {text}", curves, x="position", y=kind, log="x"))


def _told(cost: float | None) -> float | None:
    """Without what float64 leaves of a cost that is 0."""
    return None if cost is None else round(cost, 9) + 0.0
