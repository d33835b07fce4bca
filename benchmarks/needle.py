"""What a model under sparse attention still finds in long text, by depth and by which layers are full: ``jieyue.run.needles``.

    python benchmarks/needle.py MODEL --choice CHOICE --text FILE --lengths 1024 2048 --depths 0 0.25 0.5 0.75 1 --out FOLDER

The same prompts for every layer mix: all layers full, the chosen ones, as many evenly spaced, none. --choice is the folder that
``jieyue sparsify`` left. Cost: a forward pass of each prompt and mix.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import torch
from long_pictures import CHOSEN, NONE, SPACED, with_pictures

from jieyue import machine
from jieyue.data.plain import read_lines
from jieyue.hf.entries import split_layers
from jieyue.hf.loading import load
from jieyue.report import Report
from jieyue.run.layer_choice import interleaved
from jieyue.run.needles import DEPTHS, FULL, find_needles, needle_prompts, needles_section
from jieyue.run.sparsify import CHOICE


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


def spoken(asked):
    """What is told of each mix as it is found, with the seconds that it took."""
    began = [time.perf_counter()]

    def tell(mix, found):
        taken, began[0] = time.perf_counter() - began[0], time.perf_counter()
        told = {"mix": mix, "found": sum(found), "of": len(asked), "seconds": round(taken)}
        print(json.dumps({"what": "needle", "tokens": len(asked[0].ids), **told}), flush=True)

    return tell


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--choice", type=Path, required=True)
    parser.add_argument("--text", type=Path, nargs="+", required=True)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048])
    parser.add_argument("--depths", type=float, nargs="+", default=list(DEPTHS))
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
        asked, taken = needle_prompts(tokenizer, text[begun:], length, given.depths, given.needles, given.seed)
        begun += taken
        needles_section(report, length, asked, find_needles(model, tokenizer, ways, asked, spoken(asked)))
        if given.out is not None:  # after each length: a longer one that fails takes nothing with it
            whole = replace(report, sections=[*report.sections])
            whole.section("Settings").facts(settings)
            print(with_pictures(whole, given.out).save(given.out, "needle").json)


if __name__ == "__main__":
    main()
