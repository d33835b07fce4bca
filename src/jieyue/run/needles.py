"""A needle in running text: what a model under sparse attention still finds, by depth and by which layers are full.

A sentence tells the secret number of a city; it stands at a depth of running text, and at the end the number is asked for. What the
model writes greedily must hold it. The same prompts for every mix of layers: all full, the chosen ones, as many evenly spaced, none.
No two prompts share text, city or number. Where the full model finds fewer than half, nothing is claimed, and the other mixes are not
asked. The sentences are English: of a model of another language nothing may be found, and then nothing is claimed.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from jieyue.errors import InputError
from jieyue.hf.use import use
from jieyue.metrics.intervals import proportion
from jieyue.report import Report
from jieyue.report.amounts import Given

if TYPE_CHECKING:
    from jieyue.hf.types import Model, Tokenizer

__all__ = ["DEPTHS", "FULL", "Prompt", "find_needles", "finds", "needle_prompts", "needles_section"]

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)  # 0: at the beginning
FULL = "every layer full"
_SYLLABLES = [first + vowel for first in "bdfgklmnprstvz" for vowel in "aeiou"]
_NEEDLE = " The secret number of {city} is {number}."
_QUESTION = "\n\nQuestion: What is the secret number of {city}?\nAnswer: The secret number of {city} is"
_ANSWER_TOKENS = 10


@dataclass(frozen=True)
class Prompt:
    """Token ``ids`` [L] with the needle at ``place``, the number that must be found, and the depth that was asked for."""

    ids: list[int]
    place: int
    number: str
    depth: float


def needle_prompts(
    tokenizer: Tokenizer, text: Sequence[int], length: int, depths: Sequence[float], count: int, seed: int = 0
) -> tuple[list[Prompt], int]:
    """``count`` prompts of ``length`` tokens a depth, each with ids of ``text`` that no other has; and how many of them.

    ``InputError`` where the text has too few, or a prompt has no room for any.
    """
    draw, at = random.Random(f"{seed} {length}"), 0
    made = list[Prompt]()
    numbers = draw.sample(range(10_000, 100_000), len(depths) * count)
    syllables = [(a + b + c).capitalize() for a in _SYLLABLES for b in _SYLLABLES for c in "nrs"]
    names = draw.sample(syllables, len(numbers))
    for place, (number, city) in enumerate(zip(numbers, names, strict=True)):
        depth = depths[place % len(depths)]
        needle, question = (
            tokenizer(one.format(city=city, number=number), add_special_tokens=False)["input_ids"]
            for one in (_NEEDLE, _QUESTION)
        )
        room = length - len(needle) - len(question)
        if room < 1:
            found = f"prompts of {length} tokens, of which the question and the needle take {length - room}"
            raise InputError("needles", found, "longer rows")
        if at + room > len(text):
            found = f"{len(text):,} tokens of text for {len(numbers)} prompts of {length:,} that share none"
            raise InputError("needles", found, "more text", "fewer needles, or shorter prompts")
        own, at = list(text[at : at + room]), at + room
        where = _sentence_end(tokenizer, own, round(depth * room))
        made.append(Prompt([*own[:where], *needle, *own[where:], *question], where, str(number), depth))
    return made, at


def _sentence_end(tokenizer: Tokenizer, ids: Sequence[int], near: int) -> int:
    """The place nearest to ``near`` where a sentence ends; 0 and the end are such places."""
    ends = [
        0,
        *(n + 1 for n, one in enumerate(ids) if str(tokenizer.decode([one])).strip() in (".", "!", "?")),
        len(ids),
    ]
    return min(ends, key=lambda one: (abs(one - near), one))


def finds(model: Model, tokenizer: Tokenizer, prompt: Prompt) -> bool:
    """Whether the number is in what the model writes greedily."""
    ids = torch.tensor([prompt.ids], device=model.device)
    with torch.inference_mode():
        said = model.generate(  # type: ignore[operator]
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=_ANSWER_TOKENS,
            do_sample=False,
            pad_token_id=tokenizer.eos_token_id,
        )
    digits = re.findall(r"\d+", str(tokenizer.decode(said[0, ids.shape[1] :])).replace(",", ""))
    return prompt.number in digits


def find_needles(
    model: Model,
    tokenizer: Tokenizer,
    mixes: Mapping[str, str | None],
    asked: Sequence[Prompt],
    told: Callable[[str, Sequence[bool]], None] = lambda mix, found: None,
) -> dict[str, list[bool]]:
    """Mix -> which prompts it finds; only ``FULL``, the first, where that finds fewer than half. The model is left with its own.

    ``mixes``: name -> what ``use`` takes, None = the model's own attention; ``told``: of each mix. Cost: a forward pass of each prompt
    and mix, and ten tokens.
    """
    found: dict[str, list[bool]] = {}
    for name, attention in mixes.items():
        if found and sum(found[FULL]) < len(asked) / 2:
            break
        use(model, attention=attention)
        try:
            found[name] = [finds(model, tokenizer, one) for one in asked]
        finally:
            use(model, attention=None)
        told(name, found[name])
    return found


def needles_section(report: Report, length: int, asked: Sequence[Prompt], found: Mapping[str, Sequence[bool]]) -> None:
    """One length: found by depth and mix, the whole with exact intervals, and what may be said."""
    section, depths = report.section(f"Needles in {length:,} tokens"), sorted({one.depth for one in asked})
    names = list(found)

    def at(name: str, depth: float) -> list[bool]:
        return [own for own, one in zip(found[name], asked, strict=True) if one.depth == depth]

    cells: list[list[Given]] = [
        [f"{depth:g}", *(f"{sum(at(name, depth))} of {len(at(name, depth))}" for name in names)] for depth in depths
    ]
    section.table(["depth", *names], cells, title=f"Found, by depth, {length:,} tokens")
    rows: list[list[Given]] = [[name, len(asked), proportion(sum(found[name]), len(asked))] for name in names]
    claims = sum(found[FULL]) >= len(asked) / 2
    note = "95 % Clopper-Pearson intervals; the same prompts for every mix."
    if not claims:
        note += " The full model finds fewer than half: nothing is claimed at this length, and no other mix was asked."
    section.table(["layers", "needles", ("found", "share")], rows, title=f"Found, {length:,} tokens", note=note)
    if claims:
        lost: list[list[Given]] = [
            [
                name,
                sum(own and not other for own, other in zip(found[FULL], found[name], strict=True)),
                sum(other and not own for own, other in zip(found[FULL], found[name], strict=True)),
            ]
            for name in names[1:]
        ]
        columns: list[str | tuple[str, str]] = ["layers", "found by the full model alone", "found by these alone"]
        section.table(columns, lost, title=f"Beside the full model, {length:,} tokens")
