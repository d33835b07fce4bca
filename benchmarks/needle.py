"""A needle in real text: what a model under sparse attention still finds, by depth and by which layers are full.

    python benchmarks/needle.py MODEL --choice CHOICE --text FILE --lengths 1024 2048 --depths 0 0.25 0.5 0.75 1 --out FOLDER

A sentence tells the secret number of a city; it stands at a depth of running text, and at the end the number is asked for. What the
model writes greedily must hold it. The same prompts for every layer mix: all layers full, the chosen ones, as many evenly spaced,
none. No two prompts share text, city or number. Where the full model finds fewer than half at a length, nothing is claimed there, and
the other mixes are not asked. --choice is the folder that ``jieyue sparsify`` left. Cost: a forward pass of each prompt and mix.
"""

import argparse
import json
import random
import re
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from long_pictures import CHOSEN, FULL, NONE, SPACED, with_pictures

from jieyue import machine
from jieyue.data.plain import read_lines
from jieyue.hf.entries import split_layers
from jieyue.hf.loading import load
from jieyue.hf.use import use
from jieyue.metrics.intervals import proportion
from jieyue.report import Report
from jieyue.run.layer_choice import interleaved
from jieyue.run.sparsify import CHOICE

SYLLABLES = [first + vowel for first in "bdfgklmnprstvz" for vowel in "aeiou"]
NEEDLE = " The secret number of {city} is {number}."
QUESTION = "\n\nQuestion: What is the secret number of {city}?\nAnswer: The secret number of {city} is"
ANSWER_TOKENS = 10


@dataclass(frozen=True)
class Prompt:
    """Token ``ids`` [L] with the needle at ``place``, the number that must be found, and the depth that was asked for."""

    ids: list[int]
    place: int
    number: str
    depth: float


def prompts(tokenizer, text, length, depths, count, seed=0):
    """``count`` prompts of ``length`` tokens a depth, each with ids of ``text`` that no other has; and how many."""
    draw, made, at = random.Random(f"{seed} {length}"), [], 0
    numbers = draw.sample(range(10_000, 100_000), len(depths) * count)
    names = draw.sample([(a + b + c).capitalize() for a in SYLLABLES for b in SYLLABLES for c in "nrs"], len(numbers))
    for place, (number, city) in enumerate(zip(numbers, names, strict=True)):
        depth = depths[place % len(depths)]
        needle, question = (
            tokenizer(one.format(city=city, number=number), add_special_tokens=False)["input_ids"]
            for one in (NEEDLE, QUESTION)
        )
        room = length - len(needle) - len(question)
        if at + room > len(text):
            raise SystemExit(f"--text: found {len(text)} tokens, expected more: prompts of {length} tokens share none")
        own, at = text[at : at + room], at + room
        where = sentence_end(tokenizer, own, round(depth * room))
        made.append(Prompt([*own[:where], *needle, *own[where:], *question], where, str(number), depth))
    return made, at


def sentence_end(tokenizer, ids, near):
    """The place nearest to ``near`` where a sentence ends; 0 and the end are such places."""
    ends = [0, *(n + 1 for n, one in enumerate(ids) if tokenizer.decode([one]).strip() in (".", "!", "?")), len(ids)]
    return min(ends, key=lambda one: (abs(one - near), one))


def finds(model, tokenizer, prompt):
    """Whether the number is in what the model writes greedily."""
    ids = torch.tensor([prompt.ids])
    with torch.inference_mode():
        said = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=ANSWER_TOKENS,
            do_sample=False,
            pad_token_id=tokenizer.eos_token_id,
        )
    digits = re.findall(r"\d+", tokenizer.decode(said[0, ids.shape[1] :]).replace(",", ""))
    return prompt.number in digits


def mixes(attention, num_layers):
    """Name -> what ``use`` takes, of the layer mixes that are compared; the chosen one is ``attention``."""
    entries = split_layers(attention)
    layers = [entries[number % len(entries)].strip() for number in range(num_layers)]
    sparse = sorted({one for one in layers if one != "full()"})
    if len(sparse) != 1:
        raise SystemExit(f"--choice: found the sparse entries {sparse}, expected one kind beside full()")
    full = layers.count("full()")
    spaced = interleaved(range(num_layers), full) if full else ()
    between = ["full()" if number in spaced else sparse[0] for number in range(num_layers)]
    return {FULL: None, CHOSEN: ",".join(layers), SPACED: ",".join(between), NONE: sparse[0]}


def found_by(model, tokenizer, ways, asked):
    """Name -> which prompts each mix finds; only the full one where that finds fewer than half."""
    found = {}
    for name, attention in ways.items():
        if found and sum(found[FULL]) < len(asked) / 2:
            break
        if attention is not None:
            use(model, attention=attention)
        started = time.perf_counter()
        found[name] = [finds(model, tokenizer, one) for one in asked]
        taken = time.perf_counter() - started
        if attention is not None:
            use(model, attention=None)
        told = {"mix": name, "found": sum(found[name]), "of": len(asked), "seconds": round(taken)}
        print(json.dumps({"what": "needle", "tokens": len(asked[0].ids), **told}), flush=True)
    return found


def tell(report, length, asked, found):
    """One length: found by depth and mix, the whole with exact intervals, and what may be said."""
    section, depths = report.section(f"Needles in {length:,} tokens"), sorted({one.depth for one in asked})
    names = list(found)

    def at(name, depth):
        return [own for own, one in zip(found[name], asked, strict=True) if one.depth == depth]

    cells = [
        [f"{depth:g}", *(f"{sum(at(name, depth))} of {len(at(name, depth))}" for name in names)] for depth in depths
    ]
    section.table(["depth", *names], cells, title=f"Found, by depth, {length:,} tokens")
    rows = [[name, len(asked), proportion(sum(found[name]), len(asked))] for name in names]
    claims = sum(found[FULL]) >= len(asked) / 2
    note = "95 % Clopper-Pearson intervals; the same prompts for every mix."
    if not claims:
        note += " The full model finds fewer than half: nothing is claimed at this length, and no other mix was asked."
    section.table(["layers", "needles", ("found", "share")], rows, title=f"Found, {length:,} tokens", note=note)
    if claims:
        lost = [
            [
                name,
                sum(own and not other for own, other in zip(found[FULL], found[name], strict=True)),
                sum(other and not own for own, other in zip(found[FULL], found[name], strict=True)),
            ]
            for name in names[1:]
        ]
        columns = ["layers", "found by the full model alone", "found by these alone"]
        section.table(columns, lost, title=f"Beside the full model, {length:,} tokens")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--choice", type=Path, required=True)
    parser.add_argument("--text", type=Path, nargs="+", required=True)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048])
    parser.add_argument("--depths", type=float, nargs="+", default=[0, 0.25, 0.5, 0.75, 1])
    parser.add_argument("--needles", type=int, default=10, help="a depth and length")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    if not all(0 <= depth <= 1 for depth in given.depths) or given.needles < 1:
        parser.error("--depths, --needles: expected depths between 0 (first) and 1 (last), and at least one needle")
    model, tokenizer = load(given.model, "causal-lm")
    lines, _ = read_lines(given.text)
    text = tokenizer("\n".join(lines), add_special_tokens=False, verbose=False)["input_ids"]
    ways = mixes(
        json.loads((given.choice / CHOICE).read_text(encoding="utf-8"))["attention"], model.config.num_hidden_layers
    )
    report = Report("Needles in long text under sparse attention", about="untrained; by benchmarks/needle.py")
    settings = {"model": Path(given.model).name, "attention": ways[CHOSEN], "needles a depth": given.needles}
    settings |= {"processor": machine.cpu_name(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    settings |= {"date": time.strftime("%Y-%m-%d")}
    begun = 0
    for length in given.lengths:
        asked, taken = prompts(tokenizer, text[begun:], length, given.depths, given.needles, given.seed)
        begun += taken
        tell(report, length, asked, found_by(model, tokenizer, ways, asked))
        if given.out is not None:  # after each length: a longer one that fails takes nothing with it
            whole = replace(report, sections=[*report.sections])
            whole.section("Settings").facts(settings)
            print(with_pictures(whole, given.out).save(given.out, "needle").json)


if __name__ == "__main__":
    main()
