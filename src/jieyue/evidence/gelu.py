"""Article 6: the constants of GELU's tanh and logistic forms are outputs of a fit, and which fit decides the digits.

Computed, not drawn: each constant comes from ``activations.fitting.fit``, its largest error bounded by interval arithmetic.
"The same constant": equal to every digit that the article's own search resolves (a printed one: half of its last digit).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jieyue.activations.fitting import fit, given
from jieyue.json_values import Facts

from .claims import FAILS, HOLDS, Cell, Claim, Pairs, Place, Scale, Verdict

__all__ = ["CLAIMS"]

TANH_START = 0.7978845608028654  # √(2/π), the slope that the Taylor match gives
FITS: dict[str, tuple[str, str, str, str, str]] = {  # name: form, target, criterion, held, the constant that is shown
    "tanh, Taylor at 0": ("tanh", "erf", "local", "", "b/a"),
    "tanh, mixed": ("tanh", "erf", "mixed", "", "b/a"),
    "logistic, on the article's grid": ("sigmoid", "phi", "grid", "", "l"),
    "tanh, minimax on GELU, a held": ("tanh", "gelu", "minimax", "a", "b/a"),
    "logistic, minimax on GELU": ("sigmoid", "gelu", "minimax", "", "l"),
}
PRINTED = {"tanh, Taylor at 0": (0.0455399, 5e-8), "tanh, mixed": (0.04471491123850965, 1e-9),
           "logistic, on the article's grid": (1.7017449256323682, 1e-9)}  # fmt: skip
USED = {"tanh, minimax on GELU, a held": {"a": TANH_START, "b": TANH_START * 0.044715},
        "logistic, minimax on GELU": {"l": 1.702}}  # fmt: skip


def _cells(key: str, names: Sequence[str]) -> Callable[[Scale, Sequence[int]], list[Cell]]:
    return lambda scale, seeds: [Cell(key, {"fit": name}, 0) for name in names]


def _measure(cell: Cell, place: Place) -> Facts:
    """The constant, its largest error on its target with the certified bound, and those of the published constants."""
    name = str(cell.settings["fit"])
    form, target, criterion, held, shown = FITS[name]
    found = fit(form, target, criterion, fixed={held: "local"} if held else None)
    numbers = {
        "constant": found.ratios[shown] if "/" in shown else found.constants[shown],
        "error": found.error,
        "bound": found.bound,
        "proven": found.proven,
        "how": found.how,
    }
    if name in USED:
        published = given(form, USED[name], target)
        numbers |= {"published_error": published.error, "published_bound": published.bound}
    return numbers


def _judge_constants(results: Pairs) -> Verdict:
    rows, wrong = [], []
    for cell, numbers in results:
        name = str(cell.settings["fit"])
        printed, resolved = PRINTED[name]
        gap = abs(numbers["constant"] - printed)
        if gap > resolved or not numbers["proven"]:
            wrong.append(name)
        rows.append(
            [name, repr(printed), repr(numbers["constant"]), f"{gap:.1e}", f"{numbers['error']:.4e}",
             f"{numbers['bound']:.4e}", numbers["how"]]
        )  # fmt: skip
    columns = ["fit", "the article", "ours", "apart", "largest error", "certified bound", "by"]
    why = f"apart by more than the article's search resolves: {', '.join(wrong)}" if wrong else "all digits agree"
    return Verdict(FAILS if wrong else HOLDS, why, columns, rows)


def _judge_better(results: Pairs) -> Verdict:
    """Certain only where the new constant's *bound* lies below the published one's attained error."""
    rows, wrong = [], []
    for cell, numbers in results:
        name = str(cell.settings["fit"])
        if not (numbers["proven"] and numbers["bound"] < numbers["published_error"]):
            wrong.append(name)
        published = USED[name].get("l", 0.044715)
        rows.append(
            [name, f"{published:g}", f"{numbers['published_error']:.4e}", f"{numbers['constant']:.7f}",
             f"{numbers['error']:.4e}", f"{numbers['bound']:.4e}"]
        )  # fmt: skip
    columns = ["form", "published", "its error on GELU", "minimax on GELU", "its error", "certified bound"]
    why = f"not shown for {', '.join(wrong)}" if wrong else "the certified bound lies below the published error in each"
    return Verdict(FAILS if wrong else HOLDS, why, columns, rows)


CLAIMS = (
    Claim(
        key="gelu-constants",
        article=6,
        sentence="The tanh form's 0.044715 and the logistic form's 1.702 are what minimising the largest error gives",
        articles_number="0.0455399 by Taylor, 0.04471491123850965 mixed, 1.7017449256323682 logistic",
        cells=_cells("gelu-constants", tuple(PRINTED)),
        measure=_measure,
        judge=_judge_constants,
        certain=True,
    ),
    Claim(
        key="gelu-better-constants",
        article=6,
        sentence="Ours: minimising the error of GELU itself, not of erf or Φ, gives other constants with a smaller error",
        articles_number="none given (the article fits erf and Φ)",
        cells=_cells("gelu-better-constants", tuple(USED)),
        measure=_measure,
        judge=_judge_better,
        certain=True,
    ),
)
