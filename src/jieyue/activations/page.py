"""The page docs/gelu.md: where GELU's constants come from, every number and picture made anew by ``write_page``.

Its Chinese twin (``page_zh``) is written with it, from the same fits.

The same installation gives the same bytes. Cost: a few seconds, most of it drawing.
Source: https://kexue.fm/archives/7309, whose derivation it retells in our words with our numbers.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch

from jieyue.report import Picture, save_picture, write_whole

from .fitting import Fit, fit, given
from .forms import FORMS
from .page_numbers import (
    COMMAND,
    certified_row,
    constants_row,
    digits,
    error_row,
    form_rows,
    left_tail,
    number,
    rounding,
    table,
    turning_point,
)
from .page_zh import chinese_page
from .pictures import criterion_picture, error_picture, function_picture

__all__ = ["page_fits", "page_pictures", "page_text", "write_page"]


def write_page(folder: str | Path) -> list[Path]:
    """Writes ``gelu.md``, ``gelu.zh.md`` and the pictures ``gelu/*.svg`` into ``folder``, made if missing; returns the paths."""
    folder = Path(folder)
    fits = page_fits()
    written = [save_picture(picture, folder / "gelu" / f"{name}.svg") for name, picture in page_pictures(fits).items()]
    english = page_text(fits)
    pages = {"gelu.md": english, "gelu.zh.md": chinese_page(fits, english)}
    return [*(write_whole(folder / name, text) for name, text in pages.items()), *written]


def page_fits() -> dict[str, Fit]:
    """Every fit that the page speaks of, by the name it has there."""
    a = math.sqrt(2 / math.pi)
    return {
        "local": fit("tanh", "erf", "local"),
        "mixed": fit("tanh", "erf", "mixed"),
        "mixed continuous": fit("tanh", "erf", "minimax", fixed={"a": "local"}),
        "logistic": fit("sigmoid", "phi", "grid"),
        "logistic continuous": fit("sigmoid", "phi", "minimax"),
        "slope matched": given("sigmoid", {"l": 2 * a}, "gelu"),
        "sigmoid paper": given("sigmoid", {"l": 1.702}, "gelu"),
        "sigmoid gelu": fit("sigmoid", "gelu"),
        "tanh paper": given("tanh", {"a": a, "b": a * 0.044715}, "gelu"),
        "tanh fixed gelu": fit("tanh", "gelu", fixed={"a": "local"}),
        "tanh gelu": fit("tanh", "gelu"),
        "tanh slope": fit("tanh", "gelu'"),
        "tanh5 gelu": fit("tanh5", "gelu"),
        **{f"{name} phi": fit(name, "phi") for name in FORMS},
    }


def page_pictures(fits: dict[str, Fit]) -> dict[str, Picture]:
    """The pictures by the names of their files."""
    a = fits["mixed"].constants["a"]
    ratios = [0.0425 + 0.00002 * i for i in range(201)]
    silu = given("sigmoid", {"l": 1.0}, "gelu")
    return {
        "function": function_picture(
            {"x·σ(1.702x)": fits["sigmoid paper"], "x·σ(x), SiLU": silu}, "GELU, and two curves near it", target="gelu"
        ),
        "local-and-mixed": error_picture(
            {"mixed, 0.0447149": fits["mixed continuous"], "local, 0.0455399": fits["local"]},
            "The error on erf(x/√2): matched at a point, matched everywhere",
            (0.0, 5.0),
        ),
        "criterion": criterion_picture(
            FORMS["tanh"],
            [(a, a * ratio) for ratio in ratios],
            ratios,
            "b/a",
            {
                "local: Taylor at 0": fits["local"].ratios["b/a"],
                "mixed: the smallest maximum": fits["mixed"].ratios["b/a"],
            },
            "The largest error on erf(x/√2) as b/a moves",
        ),
        "logistic": error_picture(
            {"minimax on GELU, 1.772934": fits["sigmoid gelu"], "published, 1.702": fits["sigmoid paper"]},
            "The error of x·σ(λx) on GELU",
            (0.0, 6.0),
        ),
        "better": error_picture(
            {"a and b free": fits["tanh gelu"], "published": fits["tanh paper"], "with x⁵": fits["tanh5 gelu"]},
            "The error of the tanh forms on GELU",
            (0.0, 5.0),
        ),
    }


def page_text(fits: dict[str, Fit]) -> str:
    """The page as Markdown."""
    parts = [
        _opening(),
        _shapes(fits),
        _local(fits),
        _mixed(fits),
        _logistic(fits),
        _better(fits),
        _proof(fits),
        _use(fits),
    ]
    return "\n\n".join(parts) + "\n"


def _opening() -> str:
    return f"""# Where GELU's constants come from

Made by `{COMMAND}`; every number and picture on this page is computed by that command.

GELU weighs its argument by the chance that a standard normal variable lies below it:

```math
\\mathrm{{GELU}}(x) = x\\,\\Phi(x), \\qquad \\Phi(x) = \\tfrac12\\left(1 + \\mathrm{{erf}}(x/\\sqrt 2)\\right).
```

The paper ([Hendrycks and Gimpel, 2016](https://arxiv.org/abs/1606.08415)) gives two elementary stand-ins for those
who have no erf at hand,

```math
x\\,\\sigma(1.702\\,x) \\qquad\\text{{and}}\\qquad
\\tfrac12 x\\left[1 + \\tanh\\left(\\sqrt{{2/\\pi}}\\,(x + 0.044715\\,x^3)\\right)\\right],
```

and says nothing of where 1.702 and 0.044715 are from. [This article](https://kexue.fm/archives/7309) (in Chinese) found them again.
The page retells how, checks every digit, and then does better at the same cost.

![GELU, and two curves near it](gelu/function.svg)"""


def _shapes(fits: dict[str, Fit]) -> str:
    ratio = fits["tanh-powers phi"].error / fits["tanh phi"].error
    return f"""## Which shapes can stand for erf

erf is odd and rises from −1 to 1, and it comes within $e^{{-x^2/2}}$ of its ends. tanh of an odd polynomial comes as near as
the polynomial tells it to; a sum of tanh, or a polynomial in tanh, has the tails of tanh itself, $e^{{-2|x|}}$, far too
heavy. The best that each form can do on Φ (all constants free, largest error on [−8, 8] as small as possible) decides:

{table(["form", "s(x), for erf(x/√2)", "constants", "max error on Φ"], form_rows(fits))}

A cubic *inside* tanh errs {ratio:.0f} times less than a cubic *of* tanh. From here on the form is
$\\tanh(ax + bx^3)$, or its simplest case $2\\sigma(\\lambda x) - 1 = \\tanh(\\lambda x/2)$."""


def _local(fits: dict[str, Fit]) -> str:
    found = fits["local"]
    return f"""## Matched at a point: 0.0455

The first idea is Taylor's. Around 0,

```math
\\mathrm{{erf}}(x/\\sqrt2) = \\sqrt{{\\tfrac{{2}}{{\\pi}}}}\\left(x - \\tfrac16 x^3 + \\cdots\\right), \\qquad
\\tanh(ax + bx^3) = ax + \\left(b - \\tfrac13 a^3\\right)x^3 + \\cdots,
```

and equal coefficients give $a = \\sqrt{{2/\\pi}}$ and $b = a^3/3 - a/6$, that is

```math
\\frac ba = \\frac{{4 - \\pi}}{{6\\pi}} = {found.ratios["b/a"]:.13f}\\ldots
```

Close to 0.044715, and not it. The fit is perfect where it was made and drifts away from there: its largest error on erf is
{number(found.error)}, at x = {found.at:.2f}."""


def _mixed(fits: dict[str, Fit]) -> str:
    grid, whole = fits["mixed"], fits["mixed continuous"]
    places = " and ".join(f"{x:.3f}" for x, _ in whole.peaks)
    rows = [
        ["max over 0, 0.001, … 3.999 (the article's)", digits(grid, "b"), f"{grid.ratios['b/a']:.14f}"],
        ["max over all of [−8, 8] (30-digit Remez)", digits(whole, "b"), f"{whole.ratios['b/a']:.14f}"],
    ]
    return f"""## Matched everywhere: 0.044715

To be good everywhere one has to say what "good" means. An integral of the squared error needs a weight, or it is
decided by the ends of the interval. The largest error needs none. Keep $a = \\sqrt{{2/\\pi}}$, so that the slope at 0 stays
right, and choose the b for which the worst place is least bad:

```math
\\min_b \\max_x \\left|\\mathrm{{erf}}(x/\\sqrt 2) - \\tanh(ax + bx^3)\\right|.
```

![The largest error as b/a moves](gelu/criterion.svg)

The curve has a corner, not a valley: left of it one bump of the error is the larger, right of it another, and the best
place is where both are equal. With one free constant there are two equal extremes of opposite sign (here at x = {places}, both
{number(whole.error)}), with k constants k + 1: Chebyshev's equioscillation, which is how the fit knows that it is done.

![The error on erf](gelu/local-and-mixed.svg)

{table(["criterion", "b", "b/a"], rows)}

Both round to **0.044715**. They differ in the eleventh digit because a grid of step 0.001 misses the top of the bumps by up to
half a step; the published digits are an output of one of many nearly equal criteria, and nothing depends on the rest of them."""


def _logistic(fits: dict[str, Fit]) -> str:
    grid, whole, best, paper, matched = (
        fits[name] for name in ("logistic", "logistic continuous", "sigmoid gelu", "sigmoid paper", "slope matched")
    )
    rows = [
        error_row(f"slope at 0, 2√(2/π) = {matched.constants['l']:.4f}", matched),
        error_row("smallest maximum on Φ, published as 1.702", paper),
        error_row(f"smallest maximum on GELU, {best.constants['l']:.6f}", best),
    ]
    return f"""## The logistic form: 1.702

The same criterion for one constant, $\\min_\\lambda \\max_x |\\Phi(x) - \\sigma(\\lambda x)|$, gives
λ = {digits(grid, "l", 11)} on the article's grid and
λ = {digits(whole, "l", 14)} on all of [−8, 8], with an error of {number(whole.error)} on Φ. But Φ is not
what a network computes. GELU multiplies it by x, and an error at x = 2 counts twice that at 1:

{table(["λ chosen for", "max error on GELU", "at x"], rows)}

![The error of x·σ(λx) on GELU](gelu/logistic.svg)

{1 - best.error / paper.error:.0%} of the error is gone for the price of another number in the same place. (For a
checkpoint *trained* with 1.702, such as OpenAI's CLIP, 1.702 is of course the right one.)"""


def _better(fits: dict[str, Fit]) -> str:
    rows = [
        constants_row("published", fits["tanh paper"]),
        constants_row("local", fits["local"]),
        constants_row("minimax on GELU, a = √(2/π)", fits["tanh fixed gelu"]),
        constants_row("**minimax on GELU**", fits["tanh gelu"]),
        constants_row("minimax on GELU′", fits["tanh slope"]),
        constants_row("**with x⁵, minimax on GELU**", fits["tanh5 gelu"]),
    ]
    turn, shut = turning_point(fits["tanh5 gelu"])
    two, three, paper = fits["tanh gelu"], fits["tanh5 gelu"], fits["tanh paper"]
    return f"""## Better constants at the same cost

Fit GELU itself, and let a go free too:

{table(["tanh(ax + bx³ [+ cx⁵])", "constants", "b/a", "max error on GELU", "on Φ", "on GELU′"], rows)}

![The error of the tanh forms on GELU](gelu/better.svg)

Two other numbers in the same formula make the error {paper.error / two.error:.2f} times smaller, and one
multiplication more (x⁵) {paper.error / three.error:.0f} times. The x⁵ coefficient is negative, so the polynomial turns
over, at |x| = {turn:.2f}; jieyue holds its argument there, where the gate is open or shut to within {number(shut, 1)}.
All tanh forms lose *relative* accuracy far left (at x = −5 by a factor of {left_tail(paper):.0f}), where GELU itself
is below 10⁻⁵."""


def _proof(fits: dict[str, Fit]) -> str:
    rows = [
        certified_row(label, fits[name])
        for label, name in (("tanh, published", "tanh paper"), ("tanh, minimax on GELU", "tanh gelu"), ("with x⁵", "tanh5 gelu"),
                            ("σ(1.702x)", "sigmoid paper"), ("σ(1.772934x)", "sigmoid gelu"))
    ]  # fmt: skip
    return f"""## What is proven

A maximum over points is only a lower bound of the true one. Every fit therefore carries an upper bound as well, from interval
arithmetic: the domain is cut into cells, on each of which the error is enclosed by its value in the middle and an enclosure of its
derivative, all rounding included; cells that are not tight enough are halved. On [−8, 8]:

{table(["form", "largest error seen", "at x", "certified bound"], rows)}

The bound is one for the formula in real numbers. Rounding comes on top: torch's *exact* GELU errs by up to
{number(rounding(torch.float32), 1)} there in float32 and by {number(rounding(torch.bfloat16), 1)} in bfloat16, where the
tanh forms cannot be told from it."""


def _use(fits: dict[str, Fit]) -> str:
    found = fits["tanh gelu"]
    return f"""## To use it

```python
import torch
from jieyue.activations import fit, gelu, gaussian

x = torch.linspace(-4, 4, 9)
best = fit("tanh", "gelu")                                # a Fit: {found.constants["a"]:.7f}, {found.constants["b"]:.7f}
gelu(x, approximate="tanh")                               # the published form
gelu(x, approximate=best)                                 # ours
fit("tanh", "gelu", gaussian(1.5))                        # least squares, weighted by N(0, 1.5²)
fit(lambda x, a, b=0.1: x * torch.sigmoid(a * x + b * x**3), torch.nn.functional.mish)   # any form, any target
```

| Command | What it does |
| --- | --- |
| `jieyue fit gelu` | fits, prints the table, writes pictures, gives the constants as Python and C |
| `jieyue verify activation MODEL` | swaps variants in a loaded model: logits, loss, every layer, and which one it was trained with |
| `jieyue bench activation` | seconds and bytes of each variant on this machine, against torch's own |
| `{COMMAND}` | writes this page |

Which one a checkpoint wants is a question of its training, not of accuracy: Google's first BERT had erf, its later ones, its English
ALBERT, GPT-2 and Gemma the tanh form, OpenAI's CLIP σ(1.702x). An ALBERT whose configuration says `gelu` runs with the wrong one
([transformers #2395](https://github.com/huggingface/transformers/issues/2395)); jieyue says so when it sees one."""
